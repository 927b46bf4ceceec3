"""tunebook inside other people's tuners and engines: each module needs the package that it is named after."""
