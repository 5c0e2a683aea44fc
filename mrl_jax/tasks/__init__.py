"""What is learned from what: a room per task, named by `config.task`.

A task is a folder here and a name in `config.tasks.TASKS`, or a module of your own, named by its
import path ("my_lab.toy"), which holds all of its parts; CONTRIBUTING.md shows one. The parts:

  keys      KEYS, the config keys that it reads beside the common ones
  build     from config, data and facts to what is trained and measured, see `protocols.Builder`
  inputs    what a trained model embeds, see `tasks.inputs.Inputs`
  task      the pure functions of the training step, see `runtime.task.Task`
  measure   its measurements
"""
