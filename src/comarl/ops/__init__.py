"""The field's formulas, each with its source."""
