"""From which noise on a model loses what a picture shows, and its style.

    python benchmarks/by_strength.py mini models/mini-sd

Real pictures of the training set are noised and drawn again with their captions (image to image). What the
model loses at a small strength it has not learned in the last steps of the way, whatever the first ones do:
styles are lost there, captions in the noise. Columns as those of fidelity.py.
"""

import argparse
import tempfile
from pathlib import Path

from fidelity import draw, opened
from PIL import Image
from tqdm import tqdm

from sfumato.compare import Evaluator
from sfumato.errors import SfumatoError

STRENGTHS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="as for fidelity.py")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    print(f"{'model':<24}{'strength':>10}{'R@1':>10}{'style':>10}{'Frechet':>10}")
    try:
        evaluator = Evaluator(threads=options.threads)
        prompts = draw(options.data, "train", options.pictures, seed=0)
        real = evaluator.read(prompts.pictures)
        for model in options.models:
            with tempfile.TemporaryDirectory() as scratch:
                pipe = opened(model, Path(scratch), [], options.threads)
                for strength in STRENGTHS:
                    pairs = zip(prompts.captions, prompts.pictures, strict=True)
                    made = [
                        pipe(
                            caption,
                            image=Image.fromarray(picture),
                            strength=strength,
                            seed=seed,
                            steps=options.steps,
                        ).images[0]
                        for seed, (caption, picture) in enumerate(tqdm(pairs, desc=model, mininterval=5))
                    ]
                    scores = evaluator.score(evaluator.read(made), prompts.captions, prompts.styles, real)
                    cells = f"{scores.r1:>10.1%}{scores.style:>10.1%}{scores.frechet:>10.2f}"
                    print(f"{model:<24}{strength:>10}{cells}", flush=True)
    except SfumatoError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
