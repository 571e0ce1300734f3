"""The method. Read recipes, scions, teacher, distillation, stage1 and stage2, in this order."""
