#!/bin/sh
# Sends a request for one VM and waits for the end of its run. It needs only the nats command:
#
#   submit.sh lab vm-42 request.json [id]
#
# request.json is the whole data of the request, "vm" included. NATS_URL says where NATS is.
# Exit codes: 0 succeeded, 1 failed, 2 rejected, 3 canceled, 4 unknown.
set -eu
vcenter=$1 vm=$2 file=$3 id=${4:-$(date +%s)-$$}
answer=$(nats pub --jetstream -H ce-specversion:1.0 -H "ce-id:$id" -H ce-source:/examples/shell -H ce-type:io.guestflow.customization.requested.v1 \
  -H Content-Type:application/json "guestflow.requests.$vcenter.$vm" "$(cat "$file")" 2>&1) || { echo "$answer" >&2; exit 4; }
case $answer in *"Stored in Stream"*) ;; *) echo "$answer" >&2; exit 4 ;; esac
seq=$(echo "$answer" | sed -n 's/.*Sequence: \([0-9]*\).*/\1/p')
while sleep 1; do # the last event of the VM, and its last rejection
  last=$(nats req --raw "\$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.$vcenter.$vm.>" '' 2>/dev/null) || last=
  refused=$(nats req --raw "\$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.rejections.$vcenter.$vm" '' 2>/dev/null) || refused=
  case $refused in *"\"id\":\"rejected.$seq\""*) echo "$refused"; exit 2 ;; esac
  case $last in
  *"\"id\":\"$id\""*'"status":"succeeded"'*) echo "$last"; exit 0 ;;
  *"\"id\":\"$id\""*'"status":"failed"'*) echo "$last"; exit 1 ;;
  *"\"id\":\"$id\""*'"status":"canceled"'*) echo "$last"; exit 3 ;;
  esac
done
