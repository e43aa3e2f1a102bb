#!/usr/bin/env bash
# Deletes the slice with its disks, and its request. The bucket stays.
#   delete.sh --name=N --zone=Z --project=P --yes [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project yes" "$@"
require name zone project
is_dry_run || [[ -n ${flag[yes]:-} ]] || fail "this deletes the slice ${flag[name]} and its disks; add --yes to do it"
case $(request_state) in
  ABSENT) say "there is no ${flag[name]}" ;;
  UNKNOWN) is_dry_run || fail "gcloud cannot say whether there is a ${flag[name]}, as above; nothing was deleted" 1 ;;&
  *) delete_request ;;
esac
