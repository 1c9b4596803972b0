"""What a program would need on TPU chips that are not there: compiled for them here, by libtpu."""
