"""What the commands do: each module has a `main`, which `curriculumdp-NAME` and launch/NAME.py call."""
