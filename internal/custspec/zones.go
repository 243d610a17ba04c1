package custspec

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// formerZones were in the tz database once, and are in the lists of older vCenters.
var formerZones = []string{"US/Pacific-New"}

// checkLinuxTimeZone checks the time zone of a Linux guest against the tz database, from which vCenter's own list is
// made; letter case counts.
func (c *checker) checkLinuxTimeZone(v any, at string) {
	zone, is := v.(string)
	if !is || zone == "" {
		return
	}

	names := append(strings.Fields(tzNames), formerZones...)
	if slices.Contains(names, zone) {
		return
	}

	if _, err := strconv.Atoi(zone); err == nil {
		c.refuse(
			at,
			"%.80q is an index of Windows: a Linux guest has a name of the tz database, such as Europe/Berlin",
			zone,
		)
		return
	}

	c.refuse(at, "%.80q is no name of the tz database, such as Europe/Berlin%s", zone, nearest(zone, names))
}

// windowsZones are Microsoft's time zone index values.
var windowsZones = []int64{
	0,
	1,
	2,
	3,
	4,
	10,
	13,
	15,
	20,
	25,
	30,
	33,
	35,
	40,
	45,
	50,
	55,
	56,
	60,
	65,
	70,
	73,
	75,
	80,
	83,
	85,
	90,
	95,
	100,
	105,
	110,
	113,
	115,
	120,
	125,
	130,
	135,
	140,
	145,
	150,
	155,
	158,
	160,
	165,
	170,
	175,
	180,
	185,
	190,
	193,
	195,
	200,
	201,
	203,
	205,
	207,
	210,
	215,
	220,
	225,
	227,
	230,
	235,
	240,
	245,
	250,
	255,
	260,
	265,
	270,
	275,
	280,
	285,
	290,
	300,
}

// checkUnattended checks the unattended part of sysprep against its page. Windows has more time zones now than when the
// list was made: only vCenter can know an index beyond it.
func (c *checker) checkUnattended(m map[string]any, at string) {
	number, _ := m["timeZone"].(json.Number)
	if n, err := number.Int64(); err == nil && !slices.Contains(windowsZones, n) {
		if here := join(at, "timeZone"); n > 0 && n < 300 {
			c.refuse(here, "%d is none of Microsoft's time zone index values, such as 85 (GMT) or 110 (Berlin)", n)
		} else {
			c.warn(
				DoubtfulValue,
				here,
				"%d is none of Microsoft's time zone index values, such as 85 (GMT) or 110 (Berlin)",
				n,
			)
		}
	}

	if m["autoLogon"] == true && m["password"] == nil {
		c.warn(DoubtfulValue, join(at, "autoLogon"), "needs a password, else the customization fails")
	}
}
