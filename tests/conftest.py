"""Settings that every test runs under."""

import os
import secrets

# Before torch or vLLM is imported. One thread: spin-waiting ones starve each other on two cores. No Dynamo: it would
# compile vLLM's sampler for seconds at the first request. Offline: nothing is looked up on a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Ray asks for a token in every new cluster; without one here it would make one in the user's home.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
