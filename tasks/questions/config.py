"""Settings of a data set of questions."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tasks.questions.truth import Form


class QuestionsConfig(BaseModel):
    """Where the questions are, which columns hold what, and how a reply must look."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(
        description="A folder that `datasets` saved (save_to_disk), or one with Parquet files whose names begin with "
        "those of the splits, in it or in data/."
    )
    train: str = Field(default="train", description="The split to learn from.")
    test: str = Field(default="test", description="The split that is held out.")
    images: str = Field(
        default="images",
        description="Column of a question's pictures, a list of any number or a single one; empty: there are none.",
    )
    problem: str = Field(
        default="problem",
        description="Column of the question; <image> in it stands for a picture, in order. Without any, pictures come "
        "first.",
    )
    messages: str = Field(
        default="",
        description="Column of chat messages (role, content) in place of the question; empty: none.",
    )
    answer: str = Field(default="answer", description="Column of the true answer.")
    reasoning: str = Field(
        default="", description="Column of a right reasoning, for `sft` with learner.imitation reasoning; empty: none."
    )
    id: str = Field(default="", description="Column that names each question; empty: the split and the row's number.")
    by: tuple[str, ...] = Field(default=(), description="Columns by whose values the accuracy is told as well.")
    instruction: str = Field(default="", description="Text behind every question, for example how to answer.")
    form: Form = Field(
        default="tags",
        description="How a reply gives its answer: tags (<think> ... </think> <answer> ... </answer>), boxed (the last "
        "\\boxed{...}), or plain (it is the answer).",
    )
