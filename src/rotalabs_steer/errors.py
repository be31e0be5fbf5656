"""The errors and warnings of this package.

    SteeringError
    ├── ArchitectureError       the model has no decoder layer, part or shape we can find
    ├── LayerError              a layer the model (or set) does not have
    ├── VectorError             a vector that cannot steer: wrong shape, dtype, dimension, not finite
    ├── ModelMismatchError      a vector or file that belongs to another model
    ├── ModelNameError          a model name that names no configuration, or several
    ├── OptionError             an unknown mode, component, position, behaviour or a value out of range
    ├── DatasetError            pairs or prompts that cannot be used
    ├── ChatTemplateError       the tokenizer cannot render a prompt as a chat
    ├── ActivationError         activations that are missing or not finite
    ├── PositionError           a forward call whose token positions cannot be determined
    ├── FileFormatError         a file that is not what it should be
    ├── DownloadError           a repository that cannot be reached
    ├── SteeringConflictError   two threads steer one model differently, or hooks would not act
    ├── NotSteeredError         the model ran, and what was attached to it did not act
    ├── CompiledModelError      compiled code ran without the hooks that were to read activations
    ├── JudgeError              a language model that judges texts cannot be asked
    │   └── MissingVerdictError     it gave no valid verdict on one text
    │       └── MalformedVerdictError   its verdict does not meet the schema
    ├── ServerError             a server that cannot be reached, or that refuses what it is asked
    └── MissingDependencyError  an optional package is needed

Errors about a value are also `ValueError`, so ordinary `except` clauses work. A `SteeringWarning` says that steering
works, but probably not as it was meant.
"""


class SteeringWarning(UserWarning):
    """Steering that works, but probably not as it was meant."""


class SteeringError(Exception):
    """Base class of all errors of this package."""


class ArchitectureError(SteeringError, ValueError):
    """The model has no decoder layer, part or shape that can be found."""


class LayerError(SteeringError, ValueError):
    """A layer index that the model or the vector set does not have."""


class VectorError(SteeringError, ValueError):
    """A vector that cannot steer: wrong shape, dtype or dimension, or not finite."""


class ModelMismatchError(SteeringError, ValueError):
    """A vector that was made from another model."""


class ModelNameError(SteeringError, ValueError):
    """A model name that names no known configuration, or more than one."""


class OptionError(SteeringError, ValueError):
    """An option with a value that does not exist or is out of range."""


class DatasetError(SteeringError, ValueError):
    """Contrast pairs or prompts that cannot be used."""


class ChatTemplateError(SteeringError, ValueError):
    """The tokenizer cannot render a prompt as a chat."""


class ActivationError(SteeringError, ValueError):
    """Activations that are missing or not finite."""


class PositionError(SteeringError, ValueError):
    """A forward call whose token positions cannot be determined."""


class FileFormatError(SteeringError, ValueError):
    """A file that is not what its name or metadata says, or that would be unsafe to read."""


class DownloadError(SteeringError, RuntimeError):
    """A repository cannot be reached, or does not deliver a file that it lists."""


class SteeringConflictError(SteeringError, RuntimeError):
    """Two threads steer one model differently, or a hook would silently not act."""


class NotSteeredError(SteeringError, RuntimeError):
    """The model ran, and the layers that were to be steered did not act."""


class CompiledModelError(SteeringError, RuntimeError):
    """Compiled code ran without the hooks that were to read activations."""


class JudgeError(SteeringError, RuntimeError):
    """The judge cannot be asked: its endpoint refuses the key, the model or the address."""


class MissingVerdictError(JudgeError):
    """The judge gave no valid verdict on one text."""


class MalformedVerdictError(MissingVerdictError):
    """The judge gave a verdict that does not meet the schema."""


class ServerError(SteeringError, RuntimeError):
    """A server cannot be reached, does not steer, or refuses what it is asked."""


class MissingDependencyError(SteeringError, ImportError):
    """An optional package is needed; the message has the `pip install` line."""


def missing_dependency(feature: str, extra: str, error: ImportError) -> MissingDependencyError:
    """The error for a feature whose extra is not installed."""
    return MissingDependencyError(
        f"{feature} needs the package {error.name!r}, which is not installed. "
        f'Install it with: pip install "rotalabs-steer[{extra}]"'
    )
