"""The files of a pretrained model: named, found, downloaded and read."""
