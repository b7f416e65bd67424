"""PyTorch's own tests of recurrent, attention and transformer modules, on fastseq's."""
