"""Quality of generated crystals by the field's metrics."""
