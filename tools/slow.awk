# slow.awk reads go test -v and prints what takes longest: the seconds of each package, then the forty slowest tests.
# make slow calls it.

/^--- (PASS|FAIL): / {
	seconds = $4
	gsub(/[()s]/, "", seconds)
	names[tests] = $3
	took[tests++] = seconds
}

# A package's line comes after its tests.
/^(ok|FAIL)[ \t]+[^ \t]+\/[^ \t]*[ \t]+[0-9.]+s/ {
	seconds = $3
	sub(/s$/, "", seconds)
	printf "%8.2f %s\n", seconds, $2 | "sort -rn"
	sub(/^github.com\/guestflow\/guestflow\//, "", $2)
	for (i = 0; i < tests; i++) {
		all = all sprintf("%8.2f %s.%s\n", took[i], $2, names[i])
	}
	tests = 0
}

END {
	close("sort -rn")
	print ""
	printf "%s", all | "sort -rn | head -40"
}
