"""Public checkpoints of other code bases as models of this one."""
