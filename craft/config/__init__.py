"""What a run is: composed YAML, checked before torch is imported against the classes that will receive it."""
