"""Ways for existing models to use bigmodel_kernels.

`integrations.transformers`, for Hugging Face models, is a module to be imported by name.
"""

from bigmodel_kernels.integrations.replace_modules import ReplacementReport, replace_modules

__all__ = ["ReplacementReport", "replace_modules"]
