"""The method. Read recipes, scions, distillation, stage1 and stage2, in this order."""
