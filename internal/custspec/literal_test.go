package custspec

import "testing"

func TestNamesSecret(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"DB_PASSWORD": true, "PASSWORD": true, "password": true, "dbPassword": true, "PGPASSWORD": true,
		"MYSQL_PWD": true, "API_TOKEN": true, "GITHUB_TOKEN": true,
		"CLIENT_SECRET": true, "clientSecret": true, "AWS_SECRET_ACCESS_KEY": true, "API_KEY": true,
		"ApiKey": true, "SSH_PRIVATE_KEY": true, "PASSWORD1": true,
		"root-passwd": true, "guestinfo.db.password": true, "PASSPHRASE": true, "DB_PASS": true,
		"ADMIN_CREDENTIALS": true,
		"PWD":               false, "OLDPWD": false, "PASSWORD_FILE": false, "TOKEN_URL": false,
		"SECRET_NAME": false, "PUBLIC_KEY": false, "KEY": false, "COMPASS": false,
		"PATH": false, "AWS_ACCESS_KEY_ID": false, "SSH_AUTHORIZED_KEYS": false, "": false, "42": false,
		"BYPASS": false, "TOKENIZER": false,
	} {
		if got := NamesSecret(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestSecretsInTexts(t *testing.T) {
	t.Parallel()
	const cloud = "#cloud-config\n"
	for _, row := range []struct {
		name string
		in   func(string) string
		text string
		want string
	}{
		{"chpasswd, list", InUserData, cloud + "chpasswd:\n  list: |\n    root:hunter2\n", "passwords of chpasswd"},
		{
			"chpasswd, list of one line", InUserData,
			cloud + "chpasswd: { expire: false, list: \"root:hunter2\" }\n", "passwords of chpasswd",
		},
		{
			"chpasswd, items", InUserData,
			cloud + "chpasswd:\n  expire: false\n  list:\n    - root:hunter2\n", "passwords of chpasswd",
		},
		{
			"chpasswd, users", InUserData,
			cloud + "chpasswd:\n  users:\n  - name: root\n    password: hunter2\n", "the value of password",
		},
		{
			"chpasswd, users in flow style", InUserData,
			cloud + "chpasswd:\n  users:\n  - {name: root, password: hunter2, type: text}\n",
			"the value of password",
		},
		{
			"chpasswd, a hash", InUserData, cloud + "chpasswd:\n  list: |\n    root:$6$salt$abcdef\n",
			"passwords of chpasswd",
		},
		{
			"chpasswd, made by itself", InUserData,
			cloud + "chpasswd:\n  expire: false\n  list: |\n    root:R\n    web:RANDOM\n", "",
		},
		{"chpasswd, type RANDOM", InUserData, cloud + "chpasswd:\n  users:\n  - {name: root, type: RANDOM}\n", ""},
		{"passwd", InUserData, cloud + "users:\n- name: web\n  passwd: $6$salt$abcdef\n", "the value of passwd"},
		{
			"hashed_passwd", InUserData, cloud + "users:\n- name: web\n  hashed_passwd: $6$salt$abcdef\n",
			"the value of hashed_passwd",
		},
		{
			"plain_text_passwd, quoted", InUserData,
			cloud + "users:\n- name: web\n  plain_text_passwd: 'x y'\n", "the value of plain_text_passwd",
		},
		{"password of the default user", InUserData, cloud + "password: hunter2\n", "the value of password"},
		{
			"a value on a line of its own", InUserData, cloud + "password: >-\n  hunter2\nssh_pwauth: true\n",
			"the value of password",
		},
		{"begins with a dollar", InUserData, cloud + "password: $ecret\n", "the value of password"},
		{"in JSON", InUserData, `{"users":[{"name":"web","passwd":"hunter2"}]}`, "the value of passwd"},
		{"in base64", InUserData, "I2Nsb3VkLWNvbmZpZwpwYXNzd29yZDogaHVudGVyMgo=", "the value of password"},
		{"in a script", InUserData, "#!/bin/sh\necho root:hunter2 | chpasswd\n", "passwords for chpasswd"},
		{"in a script, here", InUserData, "#!/bin/sh\nchpasswd <<E\nroot:hunter2\nE\n", "passwords for chpasswd"},
		{
			"a key", InUserData,
			cloud + "ssh_keys:\n  rsa_private: |\n    -----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key",
		},
		{
			"a token that is written to a file", InUserData,
			cloud + "write_files:\n- path: /etc/x\n  content: |\n    token = abc\n    API_TOKEN=abc\n",
			"the value of API_TOKEN",
		},
		{
			"a variable of the script", InUserData,
			"#!/bin/sh\nread PW\necho \"password: $PW\"\ncurl --token $TOKEN x\nexport DB_PASSWORD=$PW\n", "",
		},
		{
			"none", InUserData,
			cloud + "ssh_pwauth: false\nusers:\n- name: web\n  lock_passwd: true\n  ssh_authorized_keys:\n  - " +
				"ssh-ed25519 AAAA web\nchpasswd:\n  expire: false\n",
			"",
		},
		{"none, metadata", InUserData, "instance-id: i1\nlocal-hostname: web-1\nnetwork:\n  version: 2\n", ""},
		{"jinja", InUserData, cloud + "password: {{ v1.password }}\n", ""},

		{
			"administrator", InAnswerFile,
			`<unattend><AdministratorPassword><Value>hunter2</Value><PlainText>true</PlainText></` +
				`AdministratorPassword></unattend>`,
			"the value of AdministratorPassword",
		},
		{
			"auto logon", InAnswerFile,
			`<u:unattend xmlns:u="x"><u:AutoLogon><u:Password><u:Value>x</u:Value></u:Password></u:AutoLogon></` +
				`u:unattend>`,
			"the value of Password",
		},
		{
			"credentials of a join", InAnswerFile,
			`<unattend><Credentials><Domain>d</Domain><Username>u</Username><Password>x</Password></` +
				`Credentials></unattend>`,
			"the value of Password",
		},
		{
			"machine password", InAnswerFile, `<unattend><MachinePassword>x</MachinePassword></unattend>`,
			"the value of MachinePassword",
		},
		{
			"a command", InAnswerFile, `<unattend><CommandLine>join.exe /password:x</CommandLine></unattend>`,
			"the value of /password",
		},
		{"XML that is broken", InAnswerFile, `<unattend><Password><Value>hunter2</Value>`, "the value of Password"},
		{"an INI file", InAnswerFile, "[GuiUnattended]\nAdminPassword=hunter2\n", "the value of AdminPassword"},
		{"an INI file without", InAnswerFile, "[GuiUnattended]\nAdminPassword=*\nTimeZone=110\n", ""},
		{
			"Windows' placeholder", InAnswerFile,
			`<unattend><AdministratorPassword>*SENSITIVE*DATA*DELETED*</AdministratorPassword></unattend>`,
			"",
		},
		{
			"empty", InAnswerFile,
			`<unattend><AdministratorPassword><Value/><PlainText>true</PlainText></AdministratorPassword></unattend>`,
			"",
		},
		{
			"a user, no password", InAnswerFile,
			`<unattend><Credentials><Username>u</Username></Credentials></unattend>`, "",
		},

		{"an option", InCommand, "join --user admin --password hunter2", "the value of --password"},
		{"with =", InCommand, `-c "mysql --password=hunter2"`, "the value of --password"},
		{"of Windows", InCommand, `/user:u /Password:x`, "the value of /Password"},
		{"an assignment", InCommand, `-c 'DB_PASSWORD=hunter2 run'`, "the value of DB_PASSWORD"},
		{"in a URL", InCommand, "https://user:hunter2@example.test/x", "a password in a URL"},
		{"a variable", InCommand, `--password $PW --token "${T}" /password:%PW% --secret <prompt>`, ""},
		{"a file", InCommand, "--password-file /run/x --token-url https://example.test", ""},
		{"prose", InCommand, "-c 'echo the password is wrong'", ""},
		{"a switch", InCommand, "--one-time-password --force", ""},
		{"a URL without one", InCommand, "https://user@example.test:8443/x ssh://git@host", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if got := row.in(row.text); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}
