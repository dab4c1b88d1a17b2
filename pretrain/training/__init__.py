"""Training of a base model on DeepSpeed: from a stream of batches to a Hugging Face folder.

``settings`` says what can be asked for, ``job`` joins the parts, ``loop`` is the loop; ``engine`` is
the only module that imports deepspeed. Importing this package loads neither torch nor transformers.
"""
