#!/bin/sh
# Send one scan with kcat: send_scan.sh BOOTSTRAP_SERVERS FILE [PATIENT_KEY]
# What the headers mean is in docs/messages.md.
set -eu
if [ $# -lt 2 ] || [ ! -r "$2" ]; then
    echo "usage: send_scan.sh BOOTSTRAP_SERVERS FILE [PATIENT_KEY], where FILE can be read" >&2
    exit 2
fi

bootstrap_servers=$1
file=$(realpath "$2")
# The same file always gets the same id: sending it twice gives two results with one id, and one mask.
scan_id=$(sha256sum "$file" | cut -d ' ' -f 1)
# Scans with the same key stay in order.
key=${3:-$scan_id}
case $file in
    *.dcm) content_type=application/dicom ;;
    *.png) content_type=image/png ;;
    *.jpg | *.jpeg) content_type=image/jpeg ;;
    *) content_type=application/octet-stream ;;
esac

# The client's own limit for a message is 1 MB.
kcat -P -b "$bootstrap_servers" -t scans -k "$key" -X message.max.bytes=33554432 \
    -H ce_specversion=1.0 -H ce_type=mristream.scan.v1 -H "ce_id=$scan_id" -H ce_source=urn:example:my-sender \
    -H "content-type=$content_type" "$file"
echo "$scan_id"
