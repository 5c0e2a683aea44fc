"""What carries a task: processes, mesh, optimiser, step, checkpoints, metrics, preemption."""
