# Publishes a request and waits for its end: terraform apply fails where the run does. It needs no provider; `guestflow` is on the PATH, NATS_URL is set.
terraform {
  required_version = ">= 1.4"
}

variable "vcenter" {
  type = string
}

variable "vm" {
  description = "Managed object ID, such as vm-42; of the vsphere provider: vsphere_virtual_machine.NAME.moid."
  type        = string
}

variable "attempt" {
  description = "A run that has failed is not run again under its id: count up to try again with nothing else changed."
  type        = number
  default     = 1
}

variable "host_name" {
  type = string
}

variable "address" {
  type = string
}

locals {
  request = jsonencode({
    vm    = var.vm
    guest = { credentials = { secretRef = "linux-root" } }
    customize = { spec = {
      _typeName = "CustomizationSpec"
      identity = { _typeName = "CustomizationLinuxPrep", domain = "example.test"
        hostName = { _typeName = "CustomizationFixedName", name = var.host_name }
      }
      globalIPSettings = { _typeName = "CustomizationGlobalIPSettings" }
      nicSettingMap = [{ _typeName = "CustomizationAdapterMapping", adapter = { _typeName = "CustomizationIPSettings"
        ip         = { _typeName = "CustomizationFixedIp", ipAddress = var.address }
        subnetMask = "255.255.255.0"
      } }]
    } }
    network = {}
  })
  # The same request is the same run, however often it is applied; a changed one is a new run.
  id = "${substr(sha256(local.request), 0, 16)}-${var.attempt}"
}

resource "terraform_data" "customization" {
  triggers_replace = local.id

  provisioner "local-exec" {
    command     = "printf '%s' \"$REQUEST\" | guestflow submit - --vcenter \"$VCENTER\" --source /terraform --id \"$ID\" --wait --wait-timeout 2h --text"
    environment = { REQUEST = local.request, VCENTER = var.vcenter, ID = local.id }
  }
}
