#!/bin/sh
# Two hosts on one machine: network namespaces joined by a veth pair, whose link is cut. Needs root and iproute2.
#
#     sudo benchmarks/hosts.sh [ldnq quantize's options]
#
# One process on each host quantizes ResNet-20 on the digits; after the sixth layer the link goes down. Both hosts must
# say in one line whom they have lost, and one process goes on from there to the codes of a run that nobody disturbed.
set -eu

work=$(mktemp -d)
cd "$work"
clean() {
    for host in a b; do
        ip netns pids "ldnq-$host" 2>/dev/null | xargs -r kill -KILL || true
        ip netns del "ldnq-$host" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean EXIT INT TERM

ip netns add ldnq-a
ip netns add ldnq-b
ip link add wire netns ldnq-a type veth peer name wire netns ldnq-b
number=1
for host in a b; do
    ip -n "ldnq-$host" address add "10.77.0.$number/24" dev wire
    ip -n "ldnq-$host" link set wire up
    ip -n "ldnq-$host" link set lo up
    number=$((number + 1))
done

# gloo's and NCCL's own choice of interface is that of the host's name, which both share.
export GLOO_SOCKET_IFNAME=wire NCCL_SOCKET_IFNAME=wire OMP_NUM_THREADS=1
run="--model resnet20 --dataset digits --preset fast --no-training --batch-size 32 --output $work/run"
number=0
for host in a b; do
    ip netns exec "ldnq-$host" torchrun --nnodes 2 --node-rank "$number" --nproc-per-node 1 \
        --master-addr 10.77.0.1 --master-port 29500 -m ldnq quantize $run --timeout 10 "$@" >"$host.log" 2>&1 &
    number=$((number + 1))
done

until [ "$(grep -c 'quantizing layers [0-9]* of' a.log)" -ge 6 ]; do
    kill -0 $! || { cat a.log b.log; exit 1; }
    sleep 0.2
done
ip -n ldnq-b link set wire down
cut=$(date +%s)
wait || true
echo "cut after layer $(grep -c 'quantizing layers [0-9]* of' a.log), both hosts have ended $(($(date +%s) - cut)) seconds later"
for host in a b; do
    grep '^error: ' "$host.log" | sed "s/^/host $host: /"
    [ "$(grep -c '^error: ' "$host.log")" = 1 ]
done
ldnq quantize --resume "$work/run" 2>&1 | grep 'going on'
ldnq -q quantize $run --output "$work/whole" >/dev/null
python - <<END
import ldnq

resumed, whole = (ldnq.load(f"$work/{name}/model.h5").weights for name in ("run", "whole"))
different = sum(int((resumed[name].codes != weight.codes).sum()) for name, weight in whole.items())
print(f"{different} of {sum(weight.codes.numel() for weight in whole.values())} codes differ from those of one process")
assert not different
END
