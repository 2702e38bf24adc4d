"""Writes `star_r1.json`, the Grafana dashboard, beside this file: python -m deploy.monitoring.make_dashboard

What it shows is in `ROWS`: of each panel a title, what it tells the reader, and a query for each curve. Tests run every
query against a Prometheus that watches a real run.
"""

from dataclasses import dataclass, field
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef

JSON = Path(__file__).with_name("star_r1.json")
UID = "star-r1"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """*curves* are a query by legend; a *number* is shown as one, all others over time."""

    title: str
    tells: str
    curves: dict[str, str]
    unit: str = "short"
    stacked: bool = False
    number: bool = False
    width: int = 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel] = field(default_factory=list)


def newest(name: str, *labels: str) -> str:
    """A gauge, of whichever process exports it."""
    return f'max by ({", ".join(("run", *labels))}) (ray_star_r1_{name}{{run=~"$run"}})'


def growth(name: str, *labels: str) -> str:
    """A counter, a second."""
    return f'sum by ({", ".join(("run", *labels))}) (rate(ray_star_r1_{name}_total{{run=~"$run"}}[$__rate_interval]))'


ROWS = [
    Row(
        "Is it well?",
        [
            Panel(
                title="Age of the newest step",
                tells="Longer than a few steps take: something hangs.",
                curves={"{{run}}": f"time() - {newest('last_step_timestamp_seconds')}"},
                unit="s",
                number=True,
                width=6,
            ),
            Panel(title="Step", tells="Made and served.", curves={"{{run}}": newest("step")}, number=True, width=6),
            Panel(
                title="Phase",
                tells="What the learning side does, sampled: exactly one is 1.",
                curves={"{{run}} {{phase}}": newest("phase", "phase")},
                stacked=True,
                width=12,
            ),
            Panel(
                title="Where the time goes",
                tells="Productive: the learner makes a step. Idle: it waits for groups. Wasted: it was lost. "
                "Overhead: all else.",
                curves={
                    "{{run}} {{bucket}}": f"{growth('goodput_seconds', 'bucket')} / on (run) group_left "
                    f"{growth('goodput_seconds')}"
                },
                unit="percentunit",
                stacked=True,
                width=12,
            ),
            Panel(
                title="Overlap",
                tells="Of the time, in which groups were sampled while a step was made: 0 is a synchronous run.",
                curves={"{{run}}": growth("overlap_seconds")},
                unit="percentunit",
                width=12,
            ),
        ],
    ),
    Row(
        "Who waits for whom",
        [
            Panel(
                title="Window",
                tells="Ready near 0: the learner starves. Held at the capacity and ready high: sampling waits.",
                curves={
                    "{{run}} held": newest("window_held_groups"),
                    "{{run}} ready": newest("window_ready_groups"),
                    "{{run}} capacity": newest("window_capacity_groups"),
                },
            ),
            Panel(
                title="Parts of a step",
                tells="Sampling and scoring go on all the while.",
                curves={
                    "{{run}} wait": newest("wait_seconds"),
                    "{{run}} learn": newest("learn_seconds"),
                    "{{run}} whole step": newest("step_seconds"),
                },
                unit="s",
            ),
            Panel(
                title="Publishing",
                tells="Until a version is served; of that the way of the weights; of that the pause of a worker.",
                curves={
                    "{{run}} publish": newest("publish_seconds"),
                    "{{run}} transfer": newest("publish_transfer_seconds"),
                    "{{run}} pause": newest("publish_pause_seconds"),
                },
                unit="s",
            ),
            Panel(
                title="Workers",
                tells="Of each kind in each state, and how many shall serve.",
                curves={
                    "{{run}} {{kind}} {{state}}": f"{newest('workers', 'kind', 'state')} > 0",
                    "{{run}} {{kind}} wanted": newest("workers_wanted", "kind"),
                },
            ),
            Panel(
                title="Workers lost in ten minutes",
                tells="Died, or hung and killed; each is replaced.",
                curves={
                    "{{run}} {{kind}}": "sum by (run, kind) "
                    '(increase(ray_star_r1_worker_losses_total{run=~"$run"}[10m]))'
                    f" or 0 * {newest('workers_wanted', 'kind')}"
                },
            ),
            Panel(
                title="Scoring",
                tells="Full: too few reward workers, or too few samples at once in each.",
                curves={
                    "{{run}} full": newest("scoring_full_ratio"),
                    "{{run}} longest wait, s": newest("scoring_wait_seconds"),
                },
            ),
        ],
    ),
    Row(
        "What it learns",
        [
            Panel(title="Reward", tells="Mean over a step's samples.", curves={"{{run}}": newest("reward")}),
            Panel(
                title="Reward by term",
                tells="They sum to the reward.",
                curves={"{{run}} {{term}}": newest("reward_term", "term")},
            ),
            Panel(
                title="What the task finds",
                tells="Means over a step's samples.",
                curves={"{{run}} {{column}}": newest("task_mean", "column")},
            ),
            Panel(
                title="Length of answers",
                tells="And the share that was cut off.",
                curves={"{{run}}": newest("answer_length_tokens"), "{{run}} cut off": newest("cut_off_ratio")},
            ),
            Panel(
                title="Groups without signal",
                tells="Of the groups learned from: equal rewards give no gradient.",
                curves={
                    "{{run}}": f"({growth('groups_without_signal')} or 0 * {growth('groups')}) / {growth('groups')}"
                },
                unit="percentunit",
            ),
            Panel(
                title="Gradient and entropy",
                tells="Before clipping; of the sampled tokens, in nats.",
                curves={"{{run}} gradient": newest("grad_norm"), "{{run}} entropy": newest("entropy_nats")},
            ),
        ],
    ),
    Row(
        "How fresh it is, and how fast",
        [
            Panel(
                title="Staleness of groups",
                tells="In versions, by the oldest token, of the groups learned from meanwhile.",
                curves={
                    "{{run}} up to {{le}}": "sum by (run, le) "
                    '(rate(ray_star_r1_group_staleness_versions_bucket{run=~"$run"}[$__rate_interval]))',
                    "{{run}} oldest of a step": newest("staleness_max_versions"),
                },
            ),
            Panel(
                title="Sampler and learner",
                tells="Mismatch in nats: KL over the tokens, and the token where it is largest.",
                curves={
                    "{{run}} KL": newest("sampler_kl_nats"),
                    "{{run}} largest": newest("max_abs_log_ratio_nats"),
                },
            ),
            Panel(
                title="Tokens and samples a second",
                tells="Learned from.",
                curves={"{{run}} tokens": growth("answer_tokens"), "{{run}} samples": growth("samples")},
            ),
        ],
    ),
]


def build() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("STAR-R1")
        .uid(UID)
        .description(
            "Reinforcement learning runs: are they well, who waits for whom, what is learned, how fresh it is."
        )
        .tags(["star-r1", "ray"])
        .refresh("5s")
        .time("now-30m", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(_datasource())
            .query("label_values(ray_star_r1_last_step_timestamp_seconds, run)")
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .refresh(2)
        )
    )
    for row in ROWS:
        made = made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel:
    if panel.number:
        made = stat.Panel().reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        made = timeseries.Panel().legend(legend.show_legend(True)).fill_opacity(60 if panel.stacked else 5)
    if panel.stacked:
        made = made.stacking(StackingConfig().mode(StackingMode.NORMAL))
    made = made.title(panel.title).description(panel.tells).datasource(_datasource()).unit(panel.unit)
    for index, (legend, query) in enumerate(panel.curves.items()):
        made = made.with_target(prometheus.Dataquery().expr(query).legend_format(legend).ref_id("ABCDEF"[index]))
    return made.span(panel.width).height(8)


def _datasource() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


if __name__ == "__main__":
    JSON.write_text(build())
