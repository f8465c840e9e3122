"""Models: read from and written to Hugging Face folders, cut from a teacher, or random.

Each of the three also with adapters: ``lora_from_pretrained``, ..
"""

from sad_components.models.initialization import init_copying_, init_weights
from sad_components.models.pretrained import (
    build_from_hf_folder,
    cut_student,
    even_layers,
    from_pretrained,
    from_scratch,
    lora_cut_student,
    lora_from_pretrained,
    lora_from_scratch,
    save_student,
)

__all__ = [
    "build_from_hf_folder",
    "cut_student",
    "even_layers",
    "from_pretrained",
    "from_scratch",
    "init_copying_",
    "init_weights",
    "lora_cut_student",
    "lora_from_pretrained",
    "lora_from_scratch",
    "save_student",
]
