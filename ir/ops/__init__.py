"""Operator records; importing this package registers all of them."""

from . import activations as activations
from . import adaptive_pooling as adaptive_pooling
from . import attention as attention
from . import attention_grad as attention_grad
from . import batch_norm_parts as batch_norm_parts
from . import contraction as contraction
from . import conv_parts as conv_parts
from . import convolution as convolution
from . import cross_entropy_parts as cross_entropy_parts
from . import elementwise as elementwise
from . import index as index
from . import norm as norm
from . import order as order
from . import packing as packing
from . import pool_places as pool_places
from . import pooling as pooling
from . import random as random
from . import reduction as reduction
from . import region as region
from . import row as row
from . import shape as shape
from . import source as source
from . import winograd as winograd
