"""Does a pretrained model help on a small target set (arXiv 2405.16837)?"""
