"""The first work of each service, done once for all that are forked from a process.

The rehearsal of compiled loops takes seconds of the start of each service with all families. The
objects that were made are frozen last, as a collection in a service would copy their pages.
"""

import gc

import torch

from funnel.families.rehearsal import rehearse as rehearse_families
from service.fold.fused.rehearsal import rehearse as rehearse_steps
from service.model import rehearse_once
from service.rehearsal import rehearse as rehearse_counts

torch.set_num_threads(1)  # a process with threads of torch must not be forked
rehearse_once("scores, floors and calibration", rehearse_counts)
rehearse_once("linear models", rehearse_steps)
for task in ("multiclass", "binary", "regression", "quantile"):
    rehearse_once("trees and neighbours", rehearse_families, task)
gc.collect()
gc.freeze()
