"""What trained models are judged by, on pictures that they have not seen."""
