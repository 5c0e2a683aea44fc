"""The folder of a run: who may write it, what it holds, and how it is read back."""
