"""Keys of a service, by what they allow."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from streams.environment import first_key, variables

LEARN_HEADER = "Funnel-Learn-Key"
"""Header of a question with ids, which needs a key that may learn next to one that may predict."""


@dataclass(frozen=True)
class Keys:
    """Keys; empty ones are not sent."""

    api: str = ""
    """Allows everything."""
    learn: str = ""
    predict: str = ""

    @classmethod
    def of(
        cls,
        api: str | None,
        learn: str | None,
        predict: str | None,
        environment: Mapping[str, str] = os.environ,
    ) -> "Keys":
        """Return these keys, or those of the environment if all are None.

        Args:
            api, learn, predict: the keys.
            environment: all variables. The keys are FUNNEL_API_KEY, FUNNEL_LEARN_KEY and
                FUNNEL_PREDICT_KEY, or in the files that these with ``_FILE`` name.

        Raises:
            PathError: such a file cannot be read, or holds nothing.
        """
        if api is not None or learn is not None or predict is not None:
            return cls(api or "", learn or "", predict or "")
        found = variables(environment)
        return cls(*(first_key(f"FUNNEL_{use}_KEY", found) for use in ("API", "LEARN", "PREDICT")))

    def to_learn(self) -> dict[str, str]:
        """Return the headers of a request that writes examples or labels."""
        return _bearer(self.learn or self.api or self.predict)

    def to_predict(self) -> dict[str, str]:
        """Return the headers of a request that reads."""
        return _bearer(self.predict or self.api or self.learn)

    def to_ask(self) -> dict[str, str]:
        """Return the headers of a question with ids."""
        if self.api or not (self.learn and self.predict):
            return _bearer(self.api or self.predict or self.learn)
        return _bearer(self.predict) | {LEARN_HEADER: self.learn}


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
