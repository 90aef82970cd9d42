# shellcheck shell=bash disable=SC2154,SC2317  # the variables stand in front of this, in the file that is made

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-}"  # srun takes it no longer from the job, since Slurm 22.05
[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK
umask 077
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}  # the same after a requeue
until=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e)  # the end of this allocation; "N/A" and the like: none
until=$(date --date "$until" +%s 2>/dev/null)
leaving='' limit_near='' failed=0 head='' keepers=()

say() { printf '%s obatchd: %s\n' "$(date +%H:%M:%S)" "$*"; }

# The status of child $1 once it has ended. A signal with a trap ends bash's own wait before that.
outlast() {
  while kill -0 "$1" 2>/dev/null; do wait "$1"; done
  wait "$1"
}

# The name of the host on Slurm's node $1: small letters, digits and hyphens, 40 at most.
host_name() {
  tr '[:upper:]' '[:lower:]' <<<"$1" | tr -c '[:lower:][:digit:]\n' '-' | cut -c 1-40 | sed 's/^-*//; s/-*$//'
}

# Keeps obatchd host on node $1 until it ends by itself, or is told to.
keep_host() {
  local node=$1 name step='' status
  name=$(host_name "$node")
  trap 'leaving=yes; kill -USR1 $step 2>/dev/null' USR1
  trap 'leaving=yes' TERM  # Slurm tells its steps by itself; srun would kill its own at this signal
  while :; do
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" --cpu-bind=none --input=none \
      "$obatchd" host ${host_config:+--config "$host_config"} ${until:+--until "$until"} \
      --enrol "$enrolment" --name "$name" --dir "$directory/$job/$name" &
    step=$!
    [ -z "$leaving" ] || kill -USR1 "$step"  # the trap came too early for this one
    outlast "$step"
    status=$?
    case $status in
      0) return 0 ;;                                            # it was told to end, or the head is gone for good
      2 | 78) say "$node: obatchd host cannot start; see above"; return "$status" ;;  # nor would it in ten seconds
    esac
    [ -z "$leaving" ] || return 0
    say "$node: obatchd host ended with $status; it starts again in ten seconds"
    step=''
    sleep 10 &
    outlast $!
    [ -z "$leaving" ] || return 0
  done
}

# The address at which the other nodes reach this one: as Slurm has it, unless that name means the loopback here.
own_address() {
  local given address
  given=$(scontrol show node --oneliner "$SLURMD_NODENAME" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)
  address=$(getent ahostsv4 "$given" | awk 'NR == 1 { print $1 }')
  case $address in
    "$given") ;;
    '' | 127.*) address=$(hostname -I | awk '{ print $1 }') ;;
  esac
  printf '%s\n' "$address"
}

# The head of this job's hosts on its first node, which is where this script runs. Its GPUs are for the host there.
start_head() {
  local address tries=0
  local enrol=("$obatchctl" --spool "$spool" hosts enrol --out "$enrolment" --valid "$valid")
  address=$(own_address):$port
  mkdir -p "$spool"
  OBATCHD_CLUSTER_LISTEN=$address OBATCHD_CLUSTER_ENGINE=slurm OBATCHD_GPUS=none \
    "$obatchd" ${head_config:+--config "$head_config"} --spool "$spool" &
  head=$!
  # After a requeue the first node may be another one; the enrolment is the head's own still, in its spool.
  if [ -e "$enrolment" ]; then
    sed -i "s|//[^/]*/|//$address/|" "$enrolment"
    return
  fi
  until "${enrol[@]}" >/dev/null 2>&1; do
    tries=$((tries + 1))
    kill -0 "$head" 2>/dev/null || { say "the head did not start; see above"; exit 1; }
    [ "$tries" -lt 60 ] || { say "the head gives no enrolment:"; "${enrol[@]}"; kill -TERM "$head"; exit 1; }
    sleep 1
  done
}

# Passes a signal on to all that keep a host. $1: its name.
tell() {
  leaving=yes
  [ ${#keepers[@]} = 0 ] || kill "-$1" "${keepers[@]}" 2>/dev/null
}

trap 'limit_near=yes; say "the time limit is near: the hosts take no more work"; tell USR1' USR1
trap 'say "told to end"; tell TERM' TERM
[ -z "$spool" ] || start_head
if ! [ -r "$enrolment" ]; then
  say "$enrolment cannot be read here. It must be on storage that the nodes share; obatchctl hosts enrol makes another"
  exit 1
fi
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
  [ -z "$leaving" ] || break
  keep_host "$node" &
  keepers+=($!)
done
for keeper in ${keepers[@]+"${keepers[@]}"}; do
  outlast "$keeper" || failed=$?
done
if [ -n "$head" ]; then
  kill -TERM "$head" 2>/dev/null
  outlast "$head" || failed=$?
fi
if [ -n "$limit_near" ] && [ -n "$renew" ]; then
  say "back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$failed"
