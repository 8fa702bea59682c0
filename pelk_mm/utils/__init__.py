"""What every room may use: command line, errors, files, output, configs."""
