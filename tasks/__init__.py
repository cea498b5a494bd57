"""The tasks, one package each, on the shared core.

In a checkout `tasks` is another name of `mmattn.tasks`, for `python -m tasks.vqa` and `from tasks.vqa import VQAHead`;
a task's submodules are imported by their full name alone, so that no class exists twice.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from mmattn.tasks.common.lazy import lazy

if TYPE_CHECKING:
    from mmattn.tasks.common.fit import fit as fit
    from mmattn.tasks.common.hub import push as push
    from mmattn.tasks.common.predictor import load as load
    from mmattn.tasks.common.task import tasks as tasks

__all__, __getattr__ = lazy(
    "mmattn.tasks.common", {"fit": ("fit",), "hub": ("push",), "predictor": ("load",), "task": ("tasks",)}
)

if __name__ == "tasks":

    class _FullNames:
        """Refuses `tasks.vqa.model`, which would be a second copy of `mmattn.tasks.vqa.model`."""

        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            parts = name.split(".")
            if parts[0] == "tasks" and (len(parts) > 2 or parts[1:] == ["common"]) and parts[-1] != "__main__":
                raise ModuleNotFoundError(f"{name}: write mmattn.{name}", name=name)

    sys.meta_path.insert(0, _FullNames)  # type: ignore[arg-type]
else:  # tasks from elsewhere: folders of task packages
    __path__ += [folder for folder in os.environ.get("MMATTN_TASKS", "").split(os.pathsep) if folder]
