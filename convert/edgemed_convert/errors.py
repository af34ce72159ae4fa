"""What can go wrong between a trained model and a checked file, beyond `edgemed.errors`.

ModelError                  exit 3
├── CheckpointError                   the base model's folder
│   └── UnsupportedArchitecture
├── AdapterError                      the adapter's folder, or an adapter on a base that is not its own
└── CheckFailed                       the gate found a file that does not say what the model says
EngineError                 exit 4
└── LlamaCppError                     llama.cpp refused or crashed
"""

from edgemed.errors import EngineError, ModelError


class CheckpointError(ModelError):
    """The model folder is damaged, incomplete, or not what its config says."""


class UnsupportedArchitecture(CheckpointError):
    """The model is of a family that this version cannot export."""


class AdapterError(ModelError):
    """The adapter is damaged, uses an option that is not supported, or belongs to another base model."""


class CheckFailed(ModelError):
    """A file does not say what the model says."""


class LlamaCppError(EngineError):
    """llama.cpp refused a file, or the process that runs it died."""
