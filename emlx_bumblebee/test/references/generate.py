"""Generates the checkpoints of ../references_test.exs, and the outputs of PyTorch and Hugging Face's transformers.

Each model is tiny. All parameters are random, including those that transformers initialises with zeros and ones.
Options with little effect by default, such as an epsilon, have another value, so that the tests detect each of them.

The archive of a family of models (see archives.py) contains, under NAME/, the files that
`Bumblebee.load_model({:local, folder})` loads, and reference.safetensors: the inputs, the outputs, and for some models
the tokens of a greedy search. They have transformers' names: "inputs.input_ids", "outputs.logits", "prompt.input_ids",
"generated".

python3 -m venv VENV && VENV/bin/pip install -r requirements.txt && VENV/bin/python generate.py [NAME ...]

Three names must be given explicitly. nomic_bert requires a newer transformers, so it runs in its own environment with
requirements_nomic_bert.txt. The other two are for ../upstream_values_test.exs: pytorch writes tensors of every type to
../pytorch, in both of PyTorch's file formats, and features writes the expected features of Whisper's featurizer.
"""

import json
import pathlib
import sys
import tempfile

import archives
import torch
import transformers as hf
from safetensors.torch import save_file

TESTS = pathlib.Path(__file__).parent.parent

# ---- inputs ----

# Of two rows of text, one is padded on the right and one on the left.
LENGTH = 9
MASK = torch.tensor([[1] * 7 + [0] * 2, [0] * 3 + [1] * 6])
# The prompts for generated text: all rows end in a token.
PROMPT_MASK = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
DECODER_MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def ids(mask, seed, pad=0, start=3, end=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(start, end, mask.shape, generator=generator).where(mask == 1, pad)


def noise(*shape, seed=5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(pad=0, **more):
    return {"input_ids": ids(MASK, 1, pad), "attention_mask": MASK, **more}


def seq2seq(pad=0):
    decoder = {"decoder_input_ids": ids(DECODER_MASK, 2, pad), "decoder_attention_mask": DECODER_MASK}
    return text(pad, **decoder)


def image(size=8):
    return {"pixel_values": noise(2, 3, size, size)}


def audio():
    return {"input_features": noise(2, 5, 12), "decoder_input_ids": ids(torch.ones(2, 6), 2)}


def boxes():
    corner = torch.randint(0, 10, (2, LENGTH, 2), generator=torch.Generator().manual_seed(6))
    return torch.cat([corner, corner + 3], dim=-1)


# ---- configurations ----

SIZES = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
TEXT = dict(**SIZES, max_position_embeddings=24)
EPSILON = dict(layer_norm_eps=1e-3)
ENCODER = dict(**TEXT, **EPSILON)
DECODER = dict(**TEXT, **TOKENS)
RMS = dict(**DECODER, rms_norm_eps=1e-3, rope_theta=1000.0)
GPT = dict(layer_norm_epsilon=1e-3, vocab_size=50, n_positions=24, n_embd=16, n_layer=2, n_head=4, n_inner=24, **TOKENS)
SEQ2SEQ = dict(
    vocab_size=50,
    max_position_embeddings=24,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    decoder_start_token_id=2,
    forced_eos_token_id=None,
)
ONE_LAYER = dict(encoder_layers=1, decoder_layers=1)
BART = dict(**SEQ2SEQ, bos_token_id=0, eos_token_id=2, pad_token_id=1)
T5 = dict(
    layer_norm_epsilon=1e-3,
    vocab_size=50,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
    decoder_start_token_id=0,
    eos_token_id=2,
    pad_token_id=0,
)
WHISPER = {**SEQ2SEQ, **ONE_LAYER, **TOKENS, "num_mel_bins": 5, "max_source_positions": 6, "max_target_positions": 24}
del WHISPER["max_position_embeddings"]
VISION = dict(
    **EPSILON,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    image_size=8,
    patch_size=4,
)
CLIP_TEXT = dict(**ENCODER, bos_token_id=1, eos_token_id=49, pad_token_id=0, projection_dim=8)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
LONGROPE = dict(type="longrope", short_factor=[1.0, 1.5], long_factor=[2.0, 4.0])
LAYERS = ["sliding_attention", "full_attention"]


def llama(**more):
    return hf.LlamaForCausalLM, hf.LlamaConfig(**{**RMS, "num_key_value_heads": 4, **more})


def phi3(**more):
    config = dict(num_key_value_heads=2, sliding_window=None, **more)
    return hf.Phi3ForCausalLM, hf.Phi3Config(**{**RMS, **config})


def clip_ids():
    # The end token has the largest id. The state is pooled at its position.
    tokens = ids(MASK, 1, pad=0, end=49)
    tokens[0, 6] = tokens[1, 8] = 49
    return {"input_ids": tokens, "attention_mask": MASK}


def references():
    """Yields name, class, configuration, inputs, and whether to generate."""
    yield "albert", hf.AlbertModel, hf.AlbertConfig(**ENCODER, embedding_size=8), text()
    yield "bert", hf.BertModel, hf.BertConfig(**ENCODER), text()
    yield "bert_masked_lm", hf.BertForMaskedLM, hf.BertConfig(**ENCODER), text()
    yield "distilbert", hf.DistilBertModel, hf.DistilBertConfig(
        vocab_size=50, dim=16, hidden_dim=24, n_layers=2, n_heads=4, max_position_embeddings=24
    ), text()
    roberta = dict(**ENCODER, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    yield "roberta", hf.RobertaModel, hf.RobertaConfig(**roberta), text(1)
    yield "mpnet", hf.MPNetModel, hf.MPNetConfig(**roberta), text(1)
    # Every second layer is global. In the others a token attends to two tokens on either side.
    modern = dict(global_attn_every_n_layers=2, local_attention=4, global_rope_theta=1000.0, local_rope_theta=100.0)
    modern = dict(**TEXT, **modern, norm_eps=1e-3, reference_compile=False, pad_token_id=0)
    yield "modernbert", hf.ModernBertForMaskedLM, hf.ModernBertConfig(**modern), text()
    modern = dict(**DECODER, norm_eps=1e-3, global_rope_theta=1000.0, local_attention=4)
    for name, every in dict(modernbert_decoder=1, modernbert_decoder_local=2).items():
        config = hf.ModernBertDecoderConfig(**modern, global_attn_every_n_layers=every)
        yield name, hf.ModernBertDecoderForCausalLM, config, text()

    yield "gpt2", hf.GPT2LMHeadModel, hf.GPT2Config(**GPT), text(), True
    neox = dict(**DECODER, **EPSILON, rotary_pct=0.5, rotary_emb_base=1000)
    yield "gpt_neo_x", hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**neox), text(), True
    neox["use_parallel_residual"] = False
    yield "gpt_neo_x_in_sequence", hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**neox), text()
    yield "gpt_big_code", hf.GPTBigCodeForCausalLM, hf.GPTBigCodeConfig(**GPT), text(), True
    yield "llama", *llama(), text()
    yield "llama_grouped", *llama(num_key_value_heads=2, rope_theta=500.0), text(), True
    yield "llama_with_large_heads", *llama(num_key_value_heads=1, head_dim=6, tie_word_embeddings=True), text()
    yield "llama_linear", *llama(rope_scaling=dict(rope_type="linear", factor=3.0)), text()
    # The text is longer than the model's positions, so that the scaling applies.
    dynamic = dict(rope_type="dynamic", factor=2.0)
    yield "llama_dynamic", *llama(rope_scaling=dynamic, max_position_embeddings=4), text()
    yield "llama_llama3", *llama(rope_scaling=LLAMA3), text(), True
    mistral = dict(**RMS, num_key_value_heads=2, sliding_window=3)
    yield "mistral", hf.MistralForCausalLM, hf.MistralConfig(**mistral), text(), True
    gemma = dict(**RMS, num_key_value_heads=1, head_dim=8, hidden_act="gelu")
    yield "gemma", hf.GemmaForCausalLM, hf.GemmaConfig(**gemma), text(), True
    gemma3 = dict(**RMS, num_key_value_heads=2, head_dim=8, sliding_window=3, layer_types=LAYERS)
    gemma3 = dict(**gemma3, query_pre_attn_scalar=12, rope_local_base_freq=100.0)
    yield "gemma3", hf.Gemma3ForCausalLM, hf.Gemma3TextConfig(**gemma3), text(), True
    qwen3 = dict(**RMS, num_key_value_heads=2, head_dim=8)
    yield "qwen3", hf.Qwen3ForCausalLM, hf.Qwen3Config(**qwen3), text(), True
    yield "phi", hf.PhiForCausalLM, hf.PhiConfig(**DECODER, **EPSILON, rope_theta=1000.0, partial_rotary_factor=0.5), text(), True
    yield "phi3", *phi3(), text(), True
    yield "phi3_longrope_short", *phi3(rope_scaling=LONGROPE, original_max_position_embeddings=12), text()
    yield "phi3_longrope_long", *phi3(rope_scaling=LONGROPE, original_max_position_embeddings=4), text()
    smollm3 = dict(**RMS, num_key_value_heads=2, no_rope_layers=[1, 0])
    yield "smollm3", hf.SmolLM3ForCausalLM, hf.SmolLM3Config(**smollm3), text(), True

    yield "t5", hf.T5ForConditionalGeneration, hf.T5Config(**T5), seq2seq(), True
    gated = dict(**{**T5, "num_layers": 1}, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    yield "t5_gated", hf.T5ForConditionalGeneration, hf.T5Config(**gated), seq2seq()
    yield "bart", hf.BartForConditionalGeneration, hf.BartConfig(**BART), seq2seq(1), True
    scaled = dict(**{**BART, **ONE_LAYER}, scale_embedding=True)
    yield "mbart", hf.MBartForConditionalGeneration, hf.MBartConfig(**scaled), seq2seq(1)
    yield "m2m100", hf.M2M100ForConditionalGeneration, hf.M2M100Config(**scaled), seq2seq(1)
    blenderbot = dict(**{**SEQ2SEQ, **ONE_LAYER}, **TOKENS, scale_embedding=True)
    yield "blenderbot", hf.BlenderbotForConditionalGeneration, hf.BlenderbotConfig(**blenderbot), seq2seq()
    yield "whisper", hf.WhisperForConditionalGeneration, hf.WhisperConfig(**WHISPER), audio()

    yield "vit", hf.ViTModel, hf.ViTConfig(**VISION), image()
    yield "deit", hf.DeiTModel, hf.DeiTConfig(**VISION), image()
    dino = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    yield "dino_v2", hf.Dinov2Model, hf.Dinov2Config(**dino), image()
    swin = dict(image_size=16, patch_size=2, embed_dim=8, num_heads=[2, 4], window_size=4)
    yield "swin", hf.SwinModel, hf.SwinConfig(**swin, depths=[2, 2]), image(16)
    config = hf.SwinConfig(**swin, depths=[1, 1], layer_norm_eps=1e-2)
    yield "swin_with_epsilon", hf.SwinModel, config, image(16)
    convnext = dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=16)
    yield "convnext", hf.ConvNextModel, hf.ConvNextConfig(**convnext, layer_norm_eps=1e-5), image(16)
    yield "convnext_with_epsilon", hf.ConvNextModel, hf.ConvNextConfig(**convnext, layer_norm_eps=1e-2), image(16)
    vision = dict(**VISION, projection_dim=8)
    clip = hf.CLIPConfig(text_config=CLIP_TEXT, vision_config=vision, projection_dim=8)
    yield "clip", hf.CLIPModel, clip, {**clip_ids(), **image()}
    yield "clip_text", hf.CLIPTextModel, hf.CLIPTextConfig(**CLIP_TEXT), clip_ids()
    yield "clip_vision", hf.CLIPVisionModel, hf.CLIPVisionConfig(**vision), image()
    blip_text = dict(**ENCODER, encoder_hidden_size=16, bos_token_id=1, eos_token_id=2, sep_token_id=2, pad_token_id=0)
    one = dict(num_hidden_layers=1)
    blip = hf.BlipConfig(text_config={**blip_text, **one}, vision_config={**VISION, **one}, projection_dim=8)
    yield "blip", hf.BlipForConditionalGeneration, blip, {**text(), **image()}
    layout = hf.LayoutLMConfig(**ENCODER, max_2d_position_embeddings=16)
    yield "layout_lm", hf.LayoutLMModel, layout, text(bbox=boxes())
    yield from heads()


# Smaller models, padded on the right, as all heads of transformers and Bumblebee expect.
SMALL = dict(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
RIGHT = torch.tensor([[1] * LENGTH, [1] * 6 + [0] * 3])
SMALL_TEXT = dict(**SMALL, max_position_embeddings=24)
SMALL_ENCODER = dict(**SMALL_TEXT, **EPSILON)
ALBERT = dict(**SMALL_ENCODER, embedding_size=4)
MODERN = dict(**SMALL_TEXT, norm_eps=1e-5, reference_compile=False, pad_token_id=0, classifier_pooling="mean")
SMALL_ROBERTA = dict(**SMALL_ENCODER, bos_token_id=0, pad_token_id=1, eos_token_id=2)
SMALL_RMS = dict(**SMALL_TEXT, **TOKENS, rms_norm_eps=1e-3, rope_theta=1000.0, num_key_value_heads=1)
SMALL_GPT = dict(**{**GPT, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": 12})
SMALL_SEQ2SEQ = dict(d_model=8, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12)
SMALL_BART = {**BART, **ONE_LAYER, **SMALL_SEQ2SEQ}
SMALL_T5 = {**T5, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2, "layer_norm_epsilon": 1e-6}
SMALL_WHISPER = {**WHISPER, **SMALL_SEQ2SEQ}
SMALL_VISION = dict(
    **EPSILON,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    image_size=8,
    patch_size=4,
    encoder_stride=4,
)
DINO = {key: value for key, value in SMALL_VISION.items() if key not in ["intermediate_size", "encoder_stride"]}
WINDOWS = dict(image_size=16, patch_size=2, embed_dim=4, depths=[1, 1], num_heads=[1, 2], window_size=4)
STAGES = dict(depths=[1, 1], hidden_sizes=[4, 8], image_size=16)

CLASSES = {
    "base": "Model",
    "masked_lm": "ForMaskedLM",
    "causal_lm": "ForCausalLM",
    "sequences": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "answers": "ForQuestionAnswering",
    "choices": "ForMultipleChoice",
    "next_sentence": "ForNextSentencePrediction",
    "images": "ForImageClassification",
    "images_with_teacher": "ForImageClassificationWithTeacher",
    "masked_images": "ForMaskedImageModeling",
}
ENCODER_HEADS = ["masked_lm", "sequences", "tokens", "answers", "choices"]
TOKEN_HEADS = ["sequences", "tokens"]
SEQ2SEQ_HEADS = ["base", "sequences", "answers", "causal_lm"]

# For each family: the prefix of its classes, its configuration and its heads.
FAMILIES = {
    "bert": ("Bert", SMALL_ENCODER, [*ENCODER_HEADS[1:], "next_sentence", "causal_lm"]),
    "roberta": ("Roberta", SMALL_ROBERTA, [*ENCODER_HEADS, "causal_lm"]),
    "distilbert": (
        "DistilBert",
        dict(vocab_size=50, dim=8, hidden_dim=12, n_layers=1, n_heads=2, max_position_embeddings=24),
        ENCODER_HEADS,
    ),
    "albert": ("Albert", ALBERT, ENCODER_HEADS),
    "mpnet": ("MPNet", SMALL_ROBERTA, ENCODER_HEADS),
    "modernbert": ("ModernBert", MODERN, ["base", *TOKEN_HEADS]),
    "modernbert_decoder": (
        "ModernBertDecoder",
        dict(**SMALL_TEXT, **TOKENS, norm_eps=1e-3, global_rope_theta=1000.0, layer_types=LAYERS[1:]),
        ["base"],
    ),
    "gpt2": ("GPT2", SMALL_GPT, ["base", *TOKEN_HEADS]),
    "gpt_big_code": ("GPTBigCode", SMALL_GPT, ["base", *TOKEN_HEADS]),
    "gpt_neo_x": (
        "GPTNeoX",
        dict(**SMALL_TEXT, **TOKENS, **EPSILON, rotary_pct=0.5, rotary_emb_base=1000),
        ["base", *TOKEN_HEADS],
    ),
    "llama": ("Llama", SMALL_RMS, ["base", "sequences"]),
    "mistral": ("Mistral", dict(**SMALL_RMS, sliding_window=None), ["base", "sequences"]),
    "gemma": ("Gemma", dict(**SMALL_RMS, head_dim=6, hidden_act="gelu"), ["base", "sequences"]),
    "gemma3": ("Gemma3Text", dict(**SMALL_RMS, head_dim=6, layer_types=LAYERS[1:]), ["base", "sequences"]),
    "qwen3": ("Qwen3", dict(**SMALL_RMS, head_dim=6), ["base", "sequences"]),
    "phi": (
        "Phi",
        dict(**SMALL_TEXT, **TOKENS, **EPSILON, rope_theta=1000.0, partial_rotary_factor=0.5),
        ["base", *TOKEN_HEADS],
    ),
    "phi3": ("Phi3", dict(**SMALL_RMS, sliding_window=None), ["base", *TOKEN_HEADS]),
    "smollm3": ("SmolLM3", dict(**SMALL_RMS, no_rope_layers=[1]), ["base", *TOKEN_HEADS, "answers"]),
    "bart": ("Bart", SMALL_BART, SEQ2SEQ_HEADS),
    "mbart": ("MBart", dict(**SMALL_BART, scale_embedding=True), SEQ2SEQ_HEADS),
    "m2m100": ("M2M100", dict(**SMALL_BART, scale_embedding=True), ["base"]),
    "blenderbot": ("Blenderbot", {**SMALL_BART, **TOKENS}, ["base"]),
    "t5": ("T5", SMALL_T5, ["base"]),
    "whisper": ("Whisper", SMALL_WHISPER, ["base"]),
    "layout_lm": (
        "LayoutLM",
        dict(**SMALL_ENCODER, max_2d_position_embeddings=16),
        ["masked_lm", "sequences", "tokens", "answers"],
    ),
    "vit": ("ViT", SMALL_VISION, ["images", "masked_images"]),
    "deit": ("DeiT", SMALL_VISION, ["images", "images_with_teacher", "masked_images"]),
    "dino_v2": ("Dinov2", DINO, ["images"]),
    "swin": ("Swin", WINDOWS, ["images"]),
    "convnext": ("ConvNext", dict(**STAGES, num_stages=2, patch_size=2, layer_norm_eps=1e-5), ["images"]),
    "resnet": ("ResNet", dict(**STAGES, embedding_size=4), ["images"]),
}


def heads():
    """Yields the remaining heads, with one layer, and classes that are equal under another name."""
    for family, (prefix, options, names) in FAMILIES.items():
        for head in names:
            more = {"num_labels": 2 if head == "answers" else 3}
            if head == "causal_lm":
                more["is_decoder"] = True
            config = getattr(hf, prefix + "Config")(**{**options, **more})
            name = "BertLMHeadModel" if (family, head) == ("bert", "causal_lm") else prefix + CLASSES[head]
            yield f"{family}_{head}", getattr(hf, name), config, head_inputs(head, config)

    for name, prefix in dict(camembert="Camembert", xlm_roberta="XLMRoberta").items():
        config = getattr(hf, prefix + "Config")(**SMALL_ROBERTA)
        yield name, getattr(hf, prefix + "Model"), config, head_inputs("base", config)
    albert = hf.AlbertConfig(**ALBERT)
    yield "albert_masked_lm_without_bias", hf.AlbertForMaskedLM, albert, head_inputs("masked_lm", albert)
    modern = hf.ModernBertConfig(**{**MODERN, "classifier_pooling": "cls"}, num_labels=3)
    yield "modernbert_sequences_first", hf.ModernBertForSequenceClassification, modern, head_inputs("sequences", modern)
    gpt2 = hf.GPT2Config(**SMALL_GPT, num_labels=3)
    yield "gpt2_sequences_padded_left", hf.GPT2ForSequenceClassification, gpt2, text()
    yield "t5_encoder", hf.T5EncoderModel, hf.T5Config(**SMALL_T5), text()
    backbone = hf.Dinov2Config(**{**DINO, "num_hidden_layers": 2}, out_features=["stage1", "stage2"])
    yield "dino_v2_backbone", hf.Dinov2Backbone, backbone, image()
    yield "dino_v2_swiglu", hf.Dinov2Model, hf.Dinov2Config(**DINO, use_swiglu_ffn=True), image()
    yield "resnet", hf.ResNetModel, hf.ResNetConfig(**STAGES, embedding_size=4), image(16)
    resnet = hf.ResNetConfig(**STAGES, embedding_size=4, layer_type="basic")
    yield "resnet_basic", hf.ResNetModel, resnet, image(16)
    clip_text = hf.CLIPTextConfig(**{**CLIP_TEXT, **SMALL})
    yield "clip_text_embedding", hf.CLIPTextModelWithProjection, clip_text, clip_ids()
    clip_vision = hf.CLIPVisionConfig(**SMALL_VISION, projection_dim=6)
    yield "clip_vision_embedding", hf.CLIPVisionModelWithProjection, clip_vision, image()


def head_inputs(head, config):
    if hasattr(config, "image_size"):
        return image(config.image_size)

    if config.model_type == "whisper":
        return audio()

    pad = config.pad_token_id
    if head == "base" and config.is_encoder_decoder:
        return seq2seq(pad)
    tokens, mask = ids(RIGHT, 1, pad), RIGHT
    if config.model_type in ["bart", "mbart"]:
        # The state is taken at the end token.
        tokens[0, 8] = tokens[1, 5] = config.eos_token_id
    if head == "choices":
        tokens = torch.stack([tokens, ids(RIGHT, 2, pad)], dim=1)
        mask = torch.stack([mask, mask], dim=1)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if config.model_type == "layoutlm":
        inputs["bbox"] = boxes()
    return inputs


# ---- references ----


def disturb(model):
    """Adds noise to every parameter, including those that transformers saves as buffers."""
    generator = torch.Generator().manual_seed(7)
    saved = set(model.state_dict())
    tensors = [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if name in saved)]

    for _name, tensor in tensors:
        if tensor.is_floating_point():
            tensor.data += 0.2 * torch.randn(tensor.shape, generator=generator)


def generate(model):
    """Generates up to eight tokens, for the first prompt whose tokens vary and do not depend on rounding."""
    for seed in range(3, 100):
        if model.config.is_encoder_decoder:
            pad = model.config.pad_token_id
            prompt = {"input_ids": ids(MASK, seed, pad), "attention_mask": MASK}
        else:
            prompt = {"input_ids": ids(PROMPT_MASK, seed), "attention_mask": PROMPT_MASK}
        result = model.generate(
            **prompt, do_sample=False, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        tokens = result.sequences[:, -len(result.logits) :]
        first, second = torch.stack(result.logits).topk(2, dim=-1).values.unbind(-1)
        # The condition also covers tokens after a row's end, where it is not needed.
        if (first - second).min() > 1e-2 and len(tokens.unique()) >= 4:
            return {f"prompt.{name}": value for name, value in prompt.items()} | {"generated": tokens}
    sys.exit("there is no such prompt")


RESULTS = {
    "last_hidden_state",
    "pooler_output",
    "logits",
    "encoder_last_hidden_state",
    "logits_per_text",
    "logits_per_image",
    "text_embeds",
    "image_embeds",
    "start_logits",
    "end_logits",
    "cls_logits",
    "distillation_logits",
    "reconstruction",
    "feature_maps",
}


def make(name, model_class, config, inputs, generated=False):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    disturb(model)
    if name == "albert_masked_lm_without_bias":
        model.predictions.bias.data.zero_()
    config.architectures = [model_class.__name__]
    # Tied parameters are saved under each of their names, as in a pytorch_model.bin. save_pretrained only saves one.
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    if name in ["phi_tokens", "phi3_tokens"]:
        # Older versions of transformers used other names, which are saved, too.
        tensors |= {key.replace("score", "classifier"): value.clone() for key, value in tensors.items() if "score" in key}

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors")
        store(name, folder, model, inputs, generated)


def store(name, folder, model, inputs, generated=False):
    """Adds reference.safetensors, inputs and outputs, to a checkpoint's folder, and archives the folder."""
    with torch.no_grad():
        outputs = {key: value for key, value in model(**inputs).items() if key in RESULTS}
        if name.endswith("_embedding"):
            # Bumblebee's model only returns the embedding.
            del outputs["last_hidden_state"]
        for index, value in enumerate(outputs.pop("feature_maps", [])):
            outputs[f"feature_maps.{index}"] = value
        generated = generate(model) if generated else {}

    stored = {f"inputs.{key}": value for key, value in inputs.items()}
    stored |= {f"outputs.{key}": value for key, value in outputs.items()} | generated
    stored = {key: value if value.is_floating_point() else value.int() for key, value in stored.items()}
    stored = {key: value.clone(memory_format=torch.contiguous_format) for key, value in stored.items()}
    save_file(stored, folder / "reference.safetensors")
    archives.put(name, folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size // 1000} kB, {', '.join(sorted(outputs))}")


def make_nomic_bert():
    """NomicBERT with the names of published checkpoints, which transformers reads but does not write."""
    torch.manual_seed(0)
    # Bumblebee's sizes are multiples of 256.
    config = hf.NomicBertConfig(**{**TEXT, "intermediate_size": 256, "hidden_size": 8, "num_attention_heads": 2, **EPSILON})
    config._attn_implementation = "eager"
    model = hf.NomicBertModel(config, add_pooling_layer=True).eval()
    disturb(model)
    state = model.state_dict()
    published = {}
    for name, tensor in state.items():
        for new, old in NOMIC_BERT.items():
            name = name.replace(new, old)
        published[name] = tensor.clone()
    for block in range(config.num_hidden_layers):
        parts = [published.pop(f"encoder.layers.{block}.self_attn.{part}_proj.weight") for part in "qkv"]
        published[f"encoder.layers.{block}.attn.Wqkv.weight"] = torch.cat(parts)

    options = dict(
        architectures=["NomicBertModel"],
        model_type="nomic_bert",
        vocab_size=config.vocab_size,
        n_positions=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_inner=config.intermediate_size,
        activation_function="swiglu",
        rotary_emb_base=config.rope_parameters["rope_theta"],
        rotary_emb_fraction=1.0,
        layer_norm_epsilon=config.layer_norm_eps,
        initializer_range=config.initializer_range,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        qkv_proj_bias=False,
        prenorm=False,
        transformers_version=hf.__version__,
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n")
        save_file(published, folder / "model.safetensors")
        store("nomic_bert", folder, model, text())


NOMIC_BERT = {
    "layers.": "encoder.layers.",
    "embeddings.LayerNorm": "emb_ln",
    "self_attn.o_proj": "attn.out_proj",
    "up_proj": "fc11",
    "gate_proj": "fc12",
    "down_proj": "fc2",
    "post_attention_layernorm": "norm1",
    "post_mlp_layernorm": "norm2",
}


def make_pytorch():
    """Writes tensors of every type, one with permuted axes in memory, and one that is a slice of another."""
    floats, integers, complexes = [-1.5, 2.25], [-3, 2], [1.5 - 1j, -2 + 0.5j]
    tensors = {
        **{name: torch.tensor(floats, dtype=getattr(torch, name)) for name in ["float64", "float32", "float16", "bfloat16"]},
        **{name: torch.tensor(integers, dtype=getattr(torch, name)) for name in ["int64", "int32", "int16", "int8"]},
        **{name: torch.tensor(complexes, dtype=getattr(torch, name)) for name in ["complex128", "complex64"]},
        "uint8": torch.tensor([7, 255], dtype=torch.uint8),
        "bool": torch.tensor([False, True]),
        "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        "part": torch.arange(10)[4:7],
    }
    folder = TESTS / "pytorch"
    folder.mkdir(exist_ok=True)
    for name, zipped in dict(zip=True, legacy=False).items():
        torch.save(tensors, folder / f"{name}.pt", _use_new_zipfile_serialization=zipped)


def make_features():
    """Writes the features of transformers' Whisper extractor for two pieces of audio: fading chords with noise."""
    extractor = hf.WhisperFeatureExtractor(chunk_length=1)
    stored = {}
    for index, length in enumerate([4000, 2500]):
        time = torch.arange(length) / 16_000
        chord = sum(torch.sin(2 * torch.pi * pitch * (index + 1) * time) for pitch in [220, 554, 1318, 3520])
        audio = (0.2 * chord + 0.02 * noise(length, seed=index)) * torch.exp(-4 * time)
        features = extractor(audio.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
        stored |= {f"audio.{index}": audio, f"features.{index}": features[0].T.contiguous()}
    save_file(stored, TESTS / "whisper_features.safetensors")


def main(names):
    if names == ["nomic_bert"]:
        return make_nomic_bert()
    if names == ["pytorch"]:
        return make_pytorch()
    if names == ["features"]:
        return make_features()

    for name, *reference in references():
        if not names or name in names:
            make(name, *reference)


if __name__ == "__main__":
    main(sys.argv[1:])
