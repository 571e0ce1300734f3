"""The method. Read recipes, scions, teacher, distillation, stage1, stage2 and method, in this order."""
