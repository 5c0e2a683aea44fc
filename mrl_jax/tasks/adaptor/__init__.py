"""The task adaptor."""
