"""hardcase: retrain small vision-language models that screen generated images, and prove what they were made of.

The method is HCM-GRPO (*Image Aesthetic Reasoning via HCM-GRPO*, arXiv 2511.10055): supervised fine-tuning on
chains of thought, then GRPO with a partial-credit reward and mining of the hard cases.
"""
