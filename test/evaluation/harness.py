"""Makes the questions in tasks/ and what EleutherAI's lm-evaluation-harness makes of them.

    python harness.py data                       writes tasks/<task>/<split>.jsonl
    python harness.py score MODEL FILE.json      evaluates a model folder in float32 and writes the log-likelihoods

harness.test.ts compares with harness.json, which is of TinyStories-656K; with SPARSEGPT_HARNESS_MODEL and SPARSEGPT_HARNESS_GOLDEN it takes
another model and FILE.json. Needs lm-eval 0.4.13 with transformers and torch. The questions are made up here; their fields are those of the data sets.
"""

import json
import os
import random
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
folder = os.path.join(here, "tasks")

names = ["Lily", "Tom", "Anna", "Ben", "Mia", "Sam", "Zoe", "Max"]
animals = ["dog", "cat", "bird", "fish", "horse", "frog", "bear", "rabbit"]
things = ["ball", "hat", "cup", "box", "kite", "book", "cake", "shoe"]
colors = ["red", "blue", "green", "yellow", "pink", "brown", "white", "black"]
places = ["park", "garden", "kitchen", "school", "forest", "river", "beach", "barn"]


def lambada(r, i):
    if i == 3:
        return {"text": "Hello"}
    a, t, c = r.choice(names), r.choice(things), r.choice(colors)
    if i % 2:
        return {"text": f"Anna was very happy that she went on {['an', 'an adventure', 'an island'][i // 2 % 3]}"}
    return {
        "text": f"{a} had a {c} {t} . \" Where is my {t} ? \" she asked . Her friend looked in the {r.choice(places)} and under the"
        f" bed . At last they found it , said {r.choice(names)}"
    }


def piqa(r, i):
    t, p = r.choice(things), r.choice(places)
    good, bad = f"Put the {t} on the shelf in the {p}.", f"Put the {t} under water in the {p} and eat it."
    label = r.randrange(2)
    return {"goal": f"How do you keep a {t} dry?", "sol1": [good, bad][label], "sol2": [bad, good][label], "label": label}


def choices(r, right, wrong, labels):
    texts = [right] + wrong
    order = list(range(len(texts)))
    r.shuffle(order)
    return {"text": [texts[j] for j in order], "label": labels[: len(texts)]}, labels[order.index(0)]


def arc(r, i):
    n = r.randrange(2, 9)
    labels = ["A", "B", "C", "D", "E"] if i % 3 else ["1", "2", "3", "4", "5"]
    wrong = [f"{n + d} legs" for d in r.sample(range(1, 6), 4 if i % 5 == 4 else 3)]
    c, key = choices(r, f"{n} legs", wrong, labels)
    a = r.choice(animals)
    return {"id": f"q{i}", "question": f"A {a} has {n} legs. How many legs does the {a} have?", "choices": c, "answerKey": key}


def hellaswag(r, i):
    a, t, p = r.choice(names), r.choice(things), r.choice(places)
    endings = [
        f"picks up the {t} and smiles.",
        f"eats the {p}  with a spoon.",
        f"[substeps] turns into a {r.choice(animals)} [title] and flies away.",
        f"says \"no\" to the {r.choice(colors)} {t}.",
    ]
    label = r.randrange(4)
    endings[0], endings[label] = endings[label], endings[0]
    head = "[header] How to play [title] Find a toy." if i % 4 == 0 else f"{a} walks to the {p}."
    return {
        "ind": i,
        "activity_label": r.choice(["Playing", "Cleaning the room", "Baking"]),
        "ctx_a": head,
        "ctx_b": "" if i % 5 == 0 else f"the {r.choice(animals)} of {a}",
        "endings": endings,
        "label": str(label),
    }


def winogrande(r, i):
    a, b = r.sample(names, 2)
    t = r.choice(things)
    first = r.randrange(2)
    return {
        "sentence": f"{a} gave the {t} to {b} because _ {'wanted to share' if first == 0 else 'wanted to have'} it.",
        "option1": a,
        "option2": b,
        "answer": str(first + 1),
    }


def boolq(r, i):
    a, p, q = r.choice(animals), *r.sample(places, 2)
    label = r.randrange(2)
    return {
        "passage": f"The {a} lives in the {p}. It sleeps all day and plays at night. It never goes to the {q}.",
        "question": f"does the {a} live in the {p if label else q}",
        "label": label,
    }


def openbookqa(r, i):
    a, p = r.choice(animals), r.choice(places)
    c, key = choices(r, f"in the {p}", [f"on the {t}" for t in r.sample(things, 3)], ["A", "B", "C", "D"])
    return {"id": str(i), "question_stem": f"The {a} was lost in the {p}. We found it", "choices": c, "answerKey": key}


def storycloze(r, i):
    n, a, t = r.choice(names), r.choice(animals), r.choice(things)
    right = r.randrange(2)
    good, bad = f"{n} was happy to have the {a} back.", f"The {t} was angry with the sun."
    return {
        "input_sentence_1": f"{n} had a little {a}.",
        "input_sentence_2": f"One day the {a} ran away.",
        "input_sentence_3": f"{n} looked under the {t}.",
        "input_sentence_4": f"The {a} was there!",
        "sentence_quiz1": [good, bad][right],
        "sentence_quiz2": [bad, good][right],
        "answer_right_ending": right + 1,
    }


def mmlu(r, i, subject):
    n, m = r.randrange(2, 20), r.randrange(2, 20)
    answer = r.randrange(4)
    values = r.sample([v for v in range(4, 40) if v != n + m], 4)
    values[answer] = n + m
    return {
        "question": f" If {r.choice(names)} has {n} of the {r.choice(things)}s and finds {m} more, how many are there? ",
        "subject": subject,
        "choices": [str(v) for v in values],
        "answer": answer,
    }


# Makers, and the numbers of rows of the splits.
tasks = {
    "lambada_openai": (lambada, {"test": 30}),
    "piqa": (piqa, {"validation": 30, "train": 30}),
    "arc_easy": (arc, {"test": 30, "train": 12}),
    "arc_challenge": (arc, {"test": 30, "train": 12}),
    "hellaswag": (hellaswag, {"validation": 30, "train": 12}),
    "winogrande": (winogrande, {"validation": 30, "train": 12}),
    "boolq": (boolq, {"validation": 30, "train": 12}),
    "openbookqa": (openbookqa, {"test": 30, "train": 12}),
    "storycloze": (storycloze, {"test": 30, "validation": 12}),
}
subjects = {"abstract_algebra": {"test": 20, "dev": 5}, "high_school_us_history": {"test": 11, "dev": 5}}


def write(path, rows):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def data():
    for number, (task, (make, splits)) in enumerate(tasks.items()):
        r = random.Random(number)
        for split, count in splits.items():
            write(f"{folder}/{task}/{split}.jsonl", [make(r, i) for i in range(count)])
    r = random.Random("mmlu")
    for split in ["test", "dev"]:
        rows = [mmlu(r, i, subject) for subject, splits in subjects.items() for i in range(splits[split])]
        write(f"{folder}/mmlu/{split}.jsonl", rows)


def score(model, out):
    import lm_eval
    import lm_eval.tasks
    import yaml
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    source = os.path.dirname(lm_eval.tasks.__file__)
    originals = {
        "lambada_openai": "lambada/lambada_openai.yaml",
        "piqa": "piqa/piqa.yaml",
        "arc_easy": "arc/arc_easy.yaml",
        "arc_challenge": "arc/arc_challenge.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "winogrande": "winogrande/default.yaml",
        "boolq": "super_glue/boolq/default.yaml",
        "openbookqa": "openbookqa/openbookqa.yaml",
        "storycloze": "storycloze/storycloze_2016.yaml",
        **{subject: f"mmlu/default/mmlu_{subject}.yaml" for subject in subjects},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for task, original in originals.items():
            splits = tasks[task][1] if task in tasks else subjects[task]
            files = {split: f"{folder}/{task}/{split}.jsonl" for split in splits}
            if task in subjects:
                for split in splits:
                    rows = [json.loads(line) for line in open(f"{folder}/mmlu/{split}.jsonl")]
                    files[split] = f"{temporary}/{task}-{split}.jsonl"
                    write(files[split], [row for row in rows if row["subject"] == task])
            config = {
                "include": f"{source}/{original}",
                "task": f"local_{task}",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": files},
            }
            with open(f"{temporary}/{task}.yaml", "w") as file:
                yaml.safe_dump(config, file)
        group = {
            "group": "local_mmlu",
            "task": [f"local_{subject}" for subject in subjects],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        }
        with open(f"{temporary}/mmlu_group.yaml", "w") as file:
            yaml.safe_dump(group, file)

        manager = lm_eval.tasks.TaskManager(include_path=temporary)
        # As tokenizer.json says; transformers 5 makes another of it for some models.
        with open(f"{model}/tokenizer_config.json") as file:
            ends = {key: value for key, value in json.load(file).items() if key in ["bos_token", "eos_token"]}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{model}/tokenizer.json", **ends)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, dtype="float32", device="cpu", batch_size=16)
        shots = {}
        for count in [0, 2]:
            wanted = [f"local_{task}" for task in [*tasks, "mmlu"]]
            result = lm_eval.simple_evaluate(
                lm, tasks=wanted, num_fewshot=count, task_manager=manager, log_samples=True, bootstrap_iters=10
            )
            shots[count] = {}
            for task in [*tasks, "mmlu"]:
                parts = subjects if task == "mmlu" else [task]
                samples = [s for part in parts for s in sorted(result["samples"][f"local_{part}"], key=lambda s: s["doc_id"])]
                measured = {**result["results"], **(result.get("groups") or {})}[f"local_{task}"]
                shots[count][task] = {
                    **{
                        key.split(",")[0]: value
                        for key, value in measured.items()
                        if key in ["acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none", "perplexity,none"]
                    },
                    "loglikelihoods": [[round(float(r[0]), 5) for r in s["filtered_resps"]] for s in samples]
                    if task != "lambada_openai"
                    else [[round(float(s["filtered_resps"][0][0]), 5)] for s in samples],
                    "last_prompt": samples[-1]["arguments"][-1][0],
                }
    with open(out, "w") as file:
        json.dump({"harness": f"lm-evaluation-harness {lm_eval.__version__}", "shots": shots}, file, indent=None)


if __name__ == "__main__":
    data() if sys.argv[1] == "data" else score(sys.argv[2], sys.argv[3])
