"""The stored grid of lesson 3: fine-tuned models that answer the same held-out digits after every epoch.

    python grids/honest_data.py      # about 5 minutes on 2 idle cores; goes on where it was stopped

All pictures are of the training part of `digits`: its first half to train on, its second half held out. The sealed
test is not opened.
"""
from tlcourse.all import *
from tlcourse.base import package_assets
from fastai.vision.all import *

def pool() -> Target:
    "Train: the first half of the training part, in the order of the file; valid: the second half."
    d = target('digits')
    x,y = torch.cat([d.train.x, d.valid.x]), torch.cat([d.train.y, d.valid.y])
    n = len(d.train)
    part = ['train']*(n//2) + ['valid']*(n - n//2) + ['test']*len(d.valid)
    return Target('digits, training part', d.classes, x, y, part, d.augments)

class Answers(Callback):
    "Keeps the class that the model gives each validation picture after each epoch."
    def before_fit(self): self.epochs = []
    def before_validate(self): self.now = []
    def after_batch(self):
        if not self.training: self.now.append(self.pred.argmax(1).cpu())
    def after_validate(self): self.epochs.append(torch.cat(self.now).numpy().astype(np.uint8))

def run(spec:dict # What to run
       ) -> dict: # `pred` of each epoch (epochs, held out) and the true `y`, uint8
    "Fine-tune as `spec` says; a run depends on its spec alone."
    t,keep = pool(),Answers()
    dls = t.dls(shots=spec['shots'], seed=spec['seed'], bs=spec['bs'], device='cpu')
    set_seed(spec['start'], reproducible=True)
    learn = learner(dls, spec['backbone'], cbs=keep)
    learn.model.to(memory_format=torch.channels_last)
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(spec['epochs'], slice(spec['lr']/25, spec['lr']))
    return dict(pred=np.stack(keep.epochs), y=t.valid.y.numpy().astype(np.uint8))

def grid() -> list:
    """Ten draws of 50 labelled pictures; for each 3 rates, a factor of 3 apart, and 2 starts of 12 epochs:
    72 models to choose from."""
    # `lesson` is a part of the stored specs: the number that the page had when they were made
    return [dict(lesson=2, target='digits', pixel_hash=target('digits').pixel_hash, backbone='glyphnet', shots=5,
                 bs=10, epochs=12, seed=s, lr=lr, start=i) for s in range(10) for lr in (.0017, .005, .015)
                 for i in range(2)]

if __name__ == '__main__':
    records = Records('tlcourse-out/honest_data/records.db')
    sweep(grid(), records, run)
    print(records.export(package_assets()/'honest_data.db').stat().st_size, 'bytes')
