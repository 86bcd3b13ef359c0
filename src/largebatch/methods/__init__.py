"""Build each method of the literature in one call, and list the methods by their command-line
names."""

from __future__ import annotations

from largebatch.methods.decay_as_growth import seesaw as seesaw
from largebatch.methods.decay_as_growth import smith as smith
from largebatch.methods.growing import adabatch as adabatch
from largebatch.methods.growing import batch_ramp as batch_ramp
from largebatch.methods.growing import batch_steps as batch_steps
from largebatch.methods.growing import growth as growth
from largebatch.methods.growing import linear_growth as linear_growth
from largebatch.methods.growing import warmup_growth as warmup_growth
from largebatch.methods.noise_scale import adadagrad as adadagrad
from largebatch.methods.noise_scale import adadagrad_norm as adadagrad_norm
from largebatch.methods.noise_scale import adadam as adadam
from largebatch.methods.noise_scale import adasgd as adasgd
from largebatch.methods.noise_scale import cosine_test as cosine_test
from largebatch.methods.noise_scale import gradient_diversity as gradient_diversity
from largebatch.methods.noise_scale import noise_scale_control as noise_scale_control
from largebatch.methods.registry import METHODS as METHODS
from largebatch.methods.registry import SCHEDULES as SCHEDULES
from largebatch.methods.registry import Method as Method
from largebatch.methods.scaling import adascale as adascale
from largebatch.methods.scaling import adascale_adam as adascale_adam
from largebatch.methods.scaling import adascale_paper as adascale_paper
from largebatch.methods.scaling import autowu as autowu
from largebatch.methods.scaling import autowu_paper as autowu_paper
from largebatch.methods.scaling import cosine as cosine
from largebatch.methods.scaling import legw as legw
from largebatch.methods.scaling import linear as linear
from largebatch.methods.scaling import linear_warmup as linear_warmup
from largebatch.methods.scaling import none as none
from largebatch.methods.scaling import sqrt as sqrt
from largebatch.methods.triggered_growth import adaptive_growth as adaptive_growth
from largebatch.methods.triggered_growth import full_gradient_growth as full_gradient_growth
