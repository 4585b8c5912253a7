#!/bin/sh
# MixIT, then SURF, on real handwritten digits in minutes of a CPU: a table and a picture in runs/demo.
set -eu
mixit="--config configs/digits_mixit.yaml --trainer.default_root_dir runs/demo/mixit"
surf_rm="--config configs/digits_surf_rm.yaml --trainer.default_root_dir runs/demo/surf_rm"
surf_rm="$surf_rm --model.mixit_checkpoint runs/demo/mixit/checkpoints/last.ckpt"
rm -rf runs/demo
surf fit $mixit --trainer.max_steps 1000 --data.batches_per_epoch 200
surf test $mixit --trainer.logger false
surf fit $surf_rm --trainer.max_steps 2000 --model.frozen_steps 600 --model.beta_steps 1200 --model.ema_decay 0.995
surf test $surf_rm --trainer.logger false
surf report runs/demo/mixit runs/demo/surf_rm --output runs/demo
