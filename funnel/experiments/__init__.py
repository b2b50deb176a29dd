"""The paper's experiments as commands: `figure3` and `classify`."""

from importlib.util import find_spec

if missing := [name for name in ("matplotlib", "PIL", "scipy", "tqdm") if find_spec(name) is None]:
    raise ImportError(
        f"the experiments need {', '.join(missing)}: pip install 'funnel-stream[experiments]'"
    )
