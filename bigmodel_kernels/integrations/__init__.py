"""Ways for existing models to use bigmodel_kernels."""

from bigmodel_kernels.integrations.replace_modules import ReplacementReport, replace_modules

__all__ = ["ReplacementReport", "replace_modules"]
