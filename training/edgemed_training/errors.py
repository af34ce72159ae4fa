"""What can go wrong between questions and answers and an adapter, beyond `edgemed.errors`.

EdgemedError
├── TrainingError           exit 1    anything planned that fits no family below
├── UsageError              exit 2
│   ├── RecipeError                   a recipe with a wrong key or value
│   └── DataError                     data that cannot be read, understood or used
│       └── LeakError                 the held-out pairs are no test: training data holds them
├── ModelError              exit 3
│   ├── BaseModelError                the base model's folder
│   └── CheckpointDamaged             a checkpoint, or one of another recipe or base model
└── EngineError             exit 4
    └── TrainingFailed                the run itself: no memory, a loss that is no number
"""

from edgemed.errors import EdgemedError, EngineError, ModelError, UsageError


class TrainingError(EdgemedError):
    """Anything planned that fits no other family."""


class RecipeError(UsageError):
    """The recipe has a key or a value that is not possible."""


class DataError(UsageError):
    """A file of questions and answers cannot be read, understood or used."""


class LeakError(DataError):
    """Held-out pairs are found in the training data, so their scores would mean nothing."""


class BaseModelError(ModelError):
    """The base model's folder is missing, incomplete, or not what its config says."""


class CheckpointDamaged(ModelError):
    """No checkpoint can be used: damaged, or of another recipe or base model."""


class TrainingFailed(EngineError):
    """The run stopped: no memory, a loss that is no number, a disk that is full."""
