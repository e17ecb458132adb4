//! systemd units: the servers without a container engine.

use std::path::Path;

use crate::conf::generated::Generated;
use crate::conf::ownership_check;
use crate::conf::setup::Setup;

/// Adds the units. `airbundle-site` is nginx for files and images; the other two are nginx for files and a
/// registry.
pub(crate) fn generate(setup: &Setup, generated: &mut Generated) {
    let conf = setup.conf.display();
    let nginx = |config: &str| {
        let run = format!("-c {conf}/{config} -g");
        format!(
            "RuntimeDirectory=airbundle-%N\nExecStartPre={check}\nExecStartPre=/usr/sbin/nginx -t {run} 'pid /run/airbundle-%N/pid;'\n\
             ExecStart=/usr/sbin/nginx {run} 'daemon off; pid /run/airbundle-%N/pid;'\nExecReload=/bin/kill -HUP \
             $MAINPID\nKillSignal=SIGQUIT",
            check = ownership_check::command(&setup.conf, Path::new("/usr/sbin/nginx")),
        )
    };
    let units = [
        (
            "airbundle-site",
            "files and images of the site (nginx)",
            nginx("nginx.conf"),
            "airbundle-files.service airbundle-registry.service",
        ),
        ("airbundle-files", "files of the site (nginx)", nginx("nginx-files.conf"), "airbundle-site.service"),
        (
            "airbundle-registry",
            "images of the site (Docker Distribution)",
            format!(
                "ExecStartPre={}\nExecStart=/usr/bin/docker-registry serve {conf}/registry.yml",
                ownership_check::command(&setup.conf, Path::new("/usr/bin/docker-registry"))
            ),
            "airbundle-site.service",
        ),
    ];
    for (name, description, service, conflicts) in units {
        let unit = format!(
            "# Made by `unbundle site`, which keeps local edits. To install:\n\
             #   cp {conf}/systemd/{name}.service /etc/systemd/system/ && systemctl enable --now {name}\n\
             [Unit]\nDescription=airbundle: {description}\nAfter=network-online.target\nWants=network-online.target\n\
             Conflicts={conflicts}\nRequiresMountsFor={site} {files} {registry}\n\n\
             [Service]\n{service}\nRestart=on-failure\nRestartSec=5\nNoNewPrivileges=yes\nProtectHome=read-only\n\
             ProtectSystem=full\n\n[Install]\nWantedBy=multi-user.target\n",
            site = setup.site.display(),
            files = setup.files.display(),
            registry = setup.registry.display(),
        );
        generated.put(&format!("systemd/{name}.service"), unit.as_bytes(), 0o644);
    }
}
