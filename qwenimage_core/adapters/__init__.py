"""Adapters: LoRA-like changes to weights. Read them (`files`), attach them (`lora`), write them (`convert`)."""
